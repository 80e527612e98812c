"""Seconds, collectives, bytes, host syncs and memory of every row, on real ranks.

The rounds interleave the rows, so that a machine's drift affects all alike. All ranks are busy in every row: groups are replicas,
and the baseline is as many single ranks, each with its own images. The slowest rank counts.
"""

import ctypes
import ctypes.util
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch

from hybridiff.parallel import Group
from hybridiff.schedule import StepKind
from jobs.benchmark.config import RowConfig, SettingConfig, TimingConfig
from jobs.benchmark.costs import LargestSegment, ideal_speedup, rank_cost
from jobs.benchmark.host_syncs import HostSyncs
from jobs.benchmark.networks import Network
from jobs.benchmark.pipelines import RowPipeline
from jobs.benchmark.ranks import Ranks

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Traffic:
    """Communication and host syncs of one batch, spread over its steps; counted apart from timing, as counting takes time.

    Args:
        collectives_per_step: collectives of a group.
        bytes_per_step: bytes sent by all ranks of a group together.
        bytes_per_image: bytes sent by all ranks of a group together.
        host_syncs_per_step: host syncs of one rank, without the scheduler's.
        scheduler_syncs_per_step: host syncs within the step of Diffusers' scheduler.
    """

    collectives_per_step: float
    bytes_per_step: float
    bytes_per_image: float
    host_syncs_per_step: float
    scheduler_syncs_per_step: float


@dataclass(frozen=True)
class Speed:
    """A row's speed.

    Args:
        seconds_per_image: time of a batch through its images: the median over the rounds.
        images_per_s_per_rank: images per second of all ranks together, through the ranks.
        speedup: speed-up over the baseline, for the same batch.
        throughput: images per second and rank, over the baseline's.
        ideal: speed-up if only arithmetic took time, a half step counted by its larger segment's share of the FLOPs.
        ideal_even: the same with equal segments.
        ideal_share: speed-up over ideal.
        steps: number of steps of each kind, in the group that computed most.
        traffic: communication and host syncs.
        peak_memory_mib: peak memory of one rank in MiB, weights included; None where it is unknown.
        rounds_s: seconds per batch of each measured round.
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
    rows: Sequence[RowConfig],
    config: TimingConfig,
    setting: SettingConfig,
    network: Network,
    largest: LargestSegment | None,
    ranks: Ranks,
    groups: Mapping[int, Group],
) -> Iterator[tuple[int, Speed]]:
    """Times all rows, the first of which is the baseline; every rank calls it alike and gets the same.

    Yields:
        After each round of a row its index and its speed over the rounds so far.
    """
    pipelines = [RowPipeline(network, setting, row, groups[row.group_size]) for row in rows]
    try:
        for pipeline in pipelines:
            _time(pipeline, ranks, config.batch)
        measured = [_count(pipeline, config.batch, largest, ranks, setting.branches) for pipeline in pipelines]
        for number in range(config.rounds):
            for index, (pipeline, row) in enumerate(zip(pipelines, measured, strict=True)):
                start_peak(ranks.device)
                row.seconds.append(_time(pipeline, ranks, config.batch))
                if number == 0:
                    row.peak_mib = _most(ranks.gather(peak_mib(ranks.device)))
                yield index, _speed(row, measured[0], config.batch, largest, setting.branches)
    finally:
        for pipeline in pipelines:
            pipeline.remove()


def count_traffic(pipeline: RowPipeline, ranks: Ranks, images: range) -> Traffic:
    """Generates images with everything counted; every rank calls it alike."""
    exchange = pipeline.handle.exchange
    collectives, sent = exchange.collectives, exchange.bytes_sent
    with HostSyncs() as syncs, syncs.apart(pipeline.pipeline.scheduler):
        pipeline.generate(images, "latent")
    groups, steps = ranks.size // pipeline.row.group_size, sum(pipeline.step_counts.values())
    sent_by_group = sum(ranks.gather(exchange.bytes_sent - sent)) // groups
    aside = syncs.counts["scheduler"]
    return Traffic(
        collectives_per_step=(exchange.collectives - collectives) / steps,
        bytes_per_step=sent_by_group / steps,
        bytes_per_image=sent_by_group / len(images),
        host_syncs_per_step=(syncs.total - aside) / steps,
        scheduler_syncs_per_step=aside / steps,
    )


def start_peak(device: torch.device) -> None:
    """Resets the peak; on CPU, after free memory that the allocator holds is returned to the system."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _RESET.exists():
        libc = ctypes.CDLL(ctypes.util.find_library("c"))
        libc.malloc_trim(0)
        _RESET.write_text("5")


def peak_mib(device: torch.device) -> float | None:
    """The peak since ``start_peak`` in MiB, weights included: of the device's allocator, or of the process; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if not _STATUS.exists():
        return None
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
    return int(lines["VmHWM"].split()[0]) / 1024 if "VmHWM" in lines else None


@dataclass
class _Measured:
    """What is known of a row while its rounds run."""

    group_size: int
    traffic: Traffic
    counts: Counter[StepKind]
    seconds: list[float] = field(default_factory=list)
    peak_mib: float | None = None


def _count(pipeline: RowPipeline, batch: int, largest: LargestSegment | None, ranks: Ranks, branches: int) -> _Measured:
    """Traffic, and the steps of the group that computes most."""

    def cost(counts: Counter[StepKind]) -> float:
        return rank_cost(counts, pipeline.row.group_size, batch, largest or LargestSegment(), branches)

    traffic = count_traffic(pipeline, ranks, _images(pipeline, batch))
    return _Measured(pipeline.row.group_size, traffic, max(ranks.gather(pipeline.step_counts), key=cost))


def _images(pipeline: RowPipeline, batch: int) -> range:
    start = pipeline.handle.group.index * batch
    return range(start, start + batch)


def _time(pipeline: RowPipeline, ranks: Ranks, batch: int) -> float:
    """Seconds of a batch on the slowest rank."""
    images = _images(pipeline, batch)
    _synchronize(ranks.device)
    ranks.barrier()
    start = time.perf_counter()
    pipeline.generate(images, "latent")
    _synchronize(ranks.device)
    return max(ranks.gather(time.perf_counter() - start))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _most(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if known else None


def _speed(row: _Measured, baseline: _Measured, batch: int, largest: LargestSegment | None, branches: int) -> Speed:
    batch_s, base_s, base_steps = median(row.seconds), median(baseline.seconds), sum(baseline.counts.values())
    ideal = ideal_speedup(base_steps, row.counts, row.group_size, batch, largest, branches)
    return Speed(
        seconds_per_image=batch_s / batch,
        images_per_s_per_rank=batch / batch_s / row.group_size,
        speedup=base_s / batch_s,
        throughput=base_s / batch_s / row.group_size,
        ideal=ideal,
        ideal_even=ideal_speedup(base_steps, row.counts, row.group_size, batch, branches=branches),
        ideal_share=base_s / batch_s / ideal,
        steps={kind.value: float(count) for kind, count in row.counts.items()},
        traffic=row.traffic,
        peak_memory_mib=row.peak_mib,
        rounds_s=list(row.seconds),
    )
