"""Seconds, collectives, bytes, waiting and memory of every row, on real ranks.

The rounds interleave the rows, so that a machine's drift hits all alike. All ranks are busy in every row: groups are replicas,
and the baseline is as many single ranks, each with its own images. The slowest rank counts.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from hybridiff.measure.config import BenchmarkConfig, SettingConfig
from hybridiff.measure.contender import Contender
from hybridiff.measure.ideal import Shares, ideal_speedup, rank_cost
from hybridiff.measure.memory import peak_mib, start_peak
from hybridiff.measure.subject import Subject
from hybridiff.measure.syncs import HostSyncs
from hybridiff.measure.world import World
from hybridiff.parallel import Group
from hybridiff.schedule import StepKind


@dataclass(frozen=True)
class Traffic:
    """What one drawing moved: collectives of a group, bytes sent by all its ranks together, waits of one rank's host.

    Those of the scheduler's own step are apart.
    """

    collectives: int
    bytes_sent: int
    host_syncs: int
    scheduler_syncs: int


@dataclass(frozen=True)
class Speed:
    """A row's speed.

    Args:
        seconds_per_image: Median over the rounds of the time of a batch, by its images.
        images_per_s_per_rank: Of all ranks' work together.
        speedup: Over the baseline, for the same batch.
        throughput: Images per second and rank, over the baseline's.
        ideal: Speed-up if only arithmetic took time, a half step counted by its larger segment's share of the FLOPs.
        ideal_even: The same with equal segments.
        ideal_share: Speed-up by ideal.
        steps: Of each kind, of the group that computed most.
        collectives_per_step: Of a group.
        bytes_per_step: Sent by all ranks of a group together.
        bytes_per_image: The same.
        host_syncs_per_step: Of one rank, apart from the scheduler's; those of the whole drawing, spread over its steps.
        scheduler_syncs_per_step: Within the step of Diffusers' scheduler.
        peak_memory_mib: Of one rank, weights included; None where it can't be told.
        rounds_s: Seconds per batch of each round that counts.
    """

    seconds_per_image: float
    images_per_s_per_rank: float
    speedup: float
    throughput: float
    ideal: float
    ideal_even: float
    ideal_share: float
    steps: dict[str, float]
    collectives_per_step: float
    bytes_per_step: float
    bytes_per_image: float
    host_syncs_per_step: float
    scheduler_syncs_per_step: float
    peak_memory_mib: float | None
    rounds_s: list[float]


def time_rows(
    config: BenchmarkConfig,
    setting: SettingConfig,
    subject: Subject,
    shares: Shares | None,
    world: World,
    groups: Mapping[int, Group],
) -> list[Speed]:
    """Times the baseline and all rows, in this order; every rank calls it alike and gets the same."""
    assert config.timing is not None
    contenders = [Contender(subject, setting, row, groups[row.group_size]) for row in config.rows_at(setting)]
    try:
        for contender in contenders:
            _time(contender, world, config.timing.batch)
        seconds: list[list[float]] = [[] for _ in contenders]
        memory: list[float | None] = []
        for number in range(config.timing.rounds):
            for contender, taken in zip(contenders, seconds, strict=True):
                start_peak(world.device)
                taken.append(_time(contender, world, config.timing.batch))
                if number == 0:
                    memory.append(_most(world.gather(peak_mib(world.device))))
        watched = [_watch(c, world, config.timing.batch) for c in contenders]
        counts = [_busiest(c, world, config.timing.batch, shares) for c in contenders]
    finally:
        for contender in contenders:
            contender.remove()
    base_s, base_steps = median(seconds[0]), sum(counts[0].values())
    return [
        _speed(c, config.timing.batch, taken, base_s, base_steps, count, shares, traffic, peak)
        for c, taken, count, traffic, peak in zip(contenders, seconds, counts, watched, memory, strict=True)
    ]


def _images(contender: Contender, batch: int) -> range:
    start = contender.handle.group.index * batch
    return range(start, start + batch)


def _watch(contender: Contender, world: World, batch: int) -> Traffic:
    """One more drawing, not timed, with everything counted that costs time to count."""
    exchange = contender.handle.exchange
    collectives, sent = exchange.collectives, exchange.bytes_sent
    with HostSyncs() as syncs, syncs.apart(contender.pipeline.scheduler):
        contender.draw(_images(contender, batch), "latent")
    all_sent = sum(world.gather(exchange.bytes_sent - sent))
    aside = syncs.counts["scheduler"]
    groups = world.size // contender.row.group_size
    return Traffic(exchange.collectives - collectives, all_sent // groups, syncs.total - aside, aside)


def _time(contender: Contender, world: World, batch: int) -> float:
    images = _images(contender, batch)
    _finish(world.device)
    world.barrier()
    start = time.perf_counter()
    contender.draw(images, "latent")
    _finish(world.device)
    return max(world.gather(time.perf_counter() - start))


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _busiest(contender: Contender, world: World, batch: int, shares: Shares | None) -> Counter[StepKind]:
    def cost(counts: Counter[StepKind]) -> float:
        return rank_cost(counts, contender.row.group_size, batch, shares or Shares())

    return max(world.gather(contender.counts), key=cost)


def _most(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if known else None


def _speed(
    contender: Contender,
    batch: int,
    seconds: list[float],
    base_s: float,
    base_steps: int,
    counts: Counter[StepKind],
    shares: Shares | None,
    traffic: Traffic,
    peak: float | None,
) -> Speed:
    size, taken, steps = contender.row.group_size, median(seconds), sum(counts.values())
    ideal = ideal_speedup(base_steps, counts, size, batch, shares)
    return Speed(
        seconds_per_image=taken / batch,
        images_per_s_per_rank=batch / taken / size,
        speedup=base_s / taken,
        throughput=base_s / taken / size,
        ideal=ideal,
        ideal_even=ideal_speedup(base_steps, counts, size, batch),
        ideal_share=base_s / taken / ideal,
        steps={kind.value: float(count) for kind, count in counts.items()},
        collectives_per_step=traffic.collectives / steps,
        bytes_per_step=traffic.bytes_sent / steps,
        bytes_per_image=traffic.bytes_sent / batch,
        host_syncs_per_step=traffic.host_syncs / steps,
        scheduler_syncs_per_step=traffic.scheduler_syncs / steps,
        peak_memory_mib=peak,
        rounds_s=seconds,
    )
