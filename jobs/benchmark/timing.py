"""Seconds, collectives, bytes, waiting and memory of every row, on real ranks.

The rounds interleave the rows, so that a machine's drift hits all alike. All ranks are busy in every row: groups are replicas,
and the baseline is as many single ranks, each with its own images. The slowest rank counts.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch

from hybridiff.parallel import Group
from hybridiff.schedule import StepKind
from jobs.benchmark.config import BenchmarkConfig, SettingConfig
from jobs.benchmark.contender import Contender
from jobs.benchmark.ideal import LargestSegment, ideal_speedup, rank_cost
from jobs.benchmark.memory import peak_mib, start_peak
from jobs.benchmark.subject import Subject
from jobs.benchmark.watch import Traffic, watch
from jobs.benchmark.world import World


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
        traffic: What a drawing moves.
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
    traffic: Traffic
    peak_memory_mib: float | None
    rounds_s: list[float]


def time_rows(
    config: BenchmarkConfig,
    setting: SettingConfig,
    subject: Subject,
    largest: LargestSegment | None,
    world: World,
    groups: Mapping[int, Group],
) -> list[Speed]:
    """Times the baseline and all rows, in this order; every rank calls it alike and gets the same."""
    assert config.timing is not None
    batch = config.timing.batch
    contenders = [Contender(subject, setting, row, groups[row.group_size]) for row in config.rows_at(setting)]
    try:
        for contender in contenders:
            _time(contender, world, batch)
        found = [_Timed(contender.row.group_size) for contender in contenders]
        for number in range(config.timing.rounds):
            for contender, timed in zip(contenders, found, strict=True):
                start_peak(world.device)
                timed.seconds.append(_time(contender, world, batch))
                if number == 0:
                    timed.peak_mib = _most(world.gather(peak_mib(world.device)))
        traffic = [watch(contender, world, _images(contender, batch)) for contender in contenders]
        for contender, timed in zip(contenders, found, strict=True):
            timed.counts = _busiest(contender, world, batch, largest)
    finally:
        for contender in contenders:
            contender.remove()
    return [_speed(timed, found[0], batch, largest, moved) for timed, moved in zip(found, traffic, strict=True)]


@dataclass
class _Timed:
    """A row on its way to a ``Speed``."""

    group_size: int
    seconds: list[float] = field(default_factory=list)
    counts: Counter[StepKind] = field(default_factory=Counter)
    peak_mib: float | None = None


def _images(contender: Contender, batch: int) -> range:
    start = contender.handle.group.index * batch
    return range(start, start + batch)


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


def _busiest(contender: Contender, world: World, batch: int, largest: LargestSegment | None) -> Counter[StepKind]:
    def cost(counts: Counter[StepKind]) -> float:
        return rank_cost(counts, contender.row.group_size, batch, largest or LargestSegment())

    return max(world.gather(contender.counts), key=cost)


def _most(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if known else None


def _speed(timed: _Timed, baseline: _Timed, batch: int, largest: LargestSegment | None, traffic: Traffic) -> Speed:
    taken, base_s, base_steps = median(timed.seconds), median(baseline.seconds), sum(baseline.counts.values())
    ideal = ideal_speedup(base_steps, timed.counts, timed.group_size, batch, largest)
    return Speed(
        seconds_per_image=taken / batch,
        images_per_s_per_rank=batch / taken / timed.group_size,
        speedup=base_s / taken,
        throughput=base_s / taken / timed.group_size,
        ideal=ideal,
        ideal_even=ideal_speedup(base_steps, timed.counts, timed.group_size, batch),
        ideal_share=base_s / taken / ideal,
        steps={kind.value: float(count) for kind, count in timed.counts.items()},
        traffic=traffic,
        peak_memory_mib=timed.peak_mib,
        rounds_s=timed.seconds,
    )
