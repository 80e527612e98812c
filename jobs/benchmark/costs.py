"""What steps cost: by FLOPs, by time on one device, and in bytes that a pair exchanges.

The speed-up expected from times on one device is an estimate: the exchange is not counted, and on two devices nothing else shares
the memory.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from hybridiff.errors import require_choice
from hybridiff.models.cuts import Cut, choose_cut
from hybridiff.models.inputs import map_tensors
from hybridiff.parallel.activations import BlockHooks
from hybridiff.parallel.rank_work import has_lanes
from hybridiff.schedule import StepKind
from jobs.benchmark import published
from jobs.benchmark.config import BytesConfig, CostsConfig, check_patterns

LETTERS = {"F": StepKind.FULL, "H": StepKind.HALF, "S": StepKind.SKIP}


@dataclass(frozen=True)
class LargestSegment:
    """The largest segment's share of the network's FLOPs, with the network cut in two and in four."""

    two: float = 0.5
    four: float = 0.25


def rank_cost(
    counts: Mapping[StepKind, float], group_size: int, images: int, largest: LargestSegment, branches: int = 2
) -> float:
    """Work of the busiest rank of a group, in passes of one branch of all ``images`` through the whole network.

    A group of 4 with more than one image is two lanes of two ranks, each with half of the images (an odd one is computed twice);
    in pipelined steps each lane computes one branch. Without guidance (one branch) the ranks share the images, or each image's
    network where there are fewer images than ranks.
    """
    if branches == 1:
        load = -(-images // group_size) / images
        ranks = group_size // images if has_lanes(group_size, images) else 1
        part = load * {1: 1.0, 2: largest.two, 4: largest.four}[ranks]
        single = {StepKind.FULL: load, StepKind.HALF: part, StepKind.SKIP: 0.0, StepKind.PIPELINED: part}
        return sum(single[kind] * count for kind, count in counts.items())
    lanes = 2 if group_size == 4 and images >= 2 else 1
    load = -(-images // lanes) / images
    segment = {1: 1.0, 2: largest.two, 4: largest.four}[group_size // lanes]
    cost = {
        StepKind.FULL: 2.0 if group_size == 1 else load,
        StepKind.HALF: segment * load,
        StepKind.SKIP: 0.0,
        StepKind.PIPELINED: {1: 2.0, 2: 2 * largest.two, 4: largest.two}[group_size],
    }
    return sum(cost[kind] * count for kind, count in counts.items())


def ideal_speedup(
    baseline_steps: int,
    counts: Mapping[StepKind, float],
    group_size: int,
    images: int,
    largest: LargestSegment | None = None,
    branches: int = 2,
) -> float:
    """The ideal speed-up over one rank that computes all branches at each of ``baseline_steps`` steps.

    Without ``largest``, segments count as equal: arXiv 2602.21760's 2 (F + H) / (F + H / 2) for a pair.
    """
    cost = rank_cost(counts, group_size, images, largest or LargestSegment(), branches)
    return branches * baseline_steps / cost if cost else float("inf")


def read_pattern(pattern: str) -> list[StepKind]:
    """The steps of a pattern such as "F15 H5 F30".

    Raises:
        UsageError: the pattern is malformed.
    """
    check_patterns("the pattern", [pattern])
    return [kind for word in pattern.split() for kind in [LETTERS[word[0]]] * int(word[1:])]


@dataclass(frozen=True)
class Expected:
    """Expected speed-ups of a mix of steps over one device with plain guidance: on a pair, and on one device."""

    pair: float
    alone: float


@dataclass(frozen=True)
class StepCosts:
    """Medians in milliseconds of one call of a denoiser for one image.

    Args:
        both_ms: both branches in one batch: a step of plain guidance, and of a group of 1.
        branch_ms: one branch through the whole network: a full step of a pair.
        segments_ms: each segment of one branch; a half step of a pair takes as long as the longest.
        flops_share: the larger segment's share of the FLOPs.
        expected: expected speed-ups by pattern of steps.
    """

    both_ms: float
    branch_ms: float
    segments_ms: tuple[float, ...]
    flops_share: float
    expected: dict[str, Expected]


@torch.no_grad()
def measure_costs(denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], config: CostsConfig) -> StepCosts:
    """Times a denoiser's call, both branches of one image, in whole and in parts.

    Args:
        denoiser: network on the device and in the dtype of the measurement; unchanged afterwards.
        args: positional arguments of its call, tensors with 2 rows.
        kwargs: keyword arguments of its call, tensors with 2 rows.
        config: repeats and patterns.

    Raises:
        UsageError: the network can't be cut, or a pattern is malformed.
    """
    patterns = {pattern: Counter(read_pattern(pattern)) for pattern in config.patterns}
    cut = choose_cut(denoiser, args, kwargs, 2)
    one = map_tensors(_first_row, (args, kwargs))
    hooks = BlockHooks(denoiser)
    outputs: dict[str, Any] = {}

    def branch(segment: int | None = None) -> None:
        others = [] if segment is None else [block.path for block in cut.blocks if cut.owner(block.path) != segment]
        with hooks.execution({path: outputs[path] for path in others}, None):
            denoiser(*one[0], **one[1])

    hooks.install(block.path for block in cut.blocks)
    try:
        with hooks.execution({}, outputs.__setitem__):
            denoiser(*one[0], **one[1])
        parts: list[Callable[[], Any]] = [lambda: denoiser(*args, **kwargs), branch, partial(branch, 0), partial(branch, 1)]
        both_ms, branch_ms, *segments_ms = _medians_ms(parts, config.repeats)
    finally:
        hooks.remove()
    expected = {name: expect(both_ms, branch_ms, max(segments_ms), counts) for name, counts in patterns.items()}
    return StepCosts(both_ms, branch_ms, tuple(segments_ms), cut.largest_share, expected)


def expect(both_ms: float, branch_ms: float, segment_ms: float, counts: Mapping[StepKind, int]) -> Expected:
    """The expected speed-ups of full, half and skip steps over as many steps of plain guidance."""
    plain = both_ms * sum(counts.values())
    full, half = counts.get(StepKind.FULL, 0), counts.get(StepKind.HALF, 0)
    return Expected(plain / (full * branch_ms + half * segment_ms), plain / (full * both_ms + half * branch_ms))


def _medians_ms(calls: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    """Median of each call; the calls are interleaved, so that drift affects all alike, and the first repeat is discarded."""
    clock = _cuda_ms if torch.cuda.is_initialized() else _host_ms
    times = [[clock(call) for call in calls] for _ in range(repeats + 1)]
    return [median(each) for each in zip(*times[1:], strict=True)]


def _cuda_ms(call: Callable[[], Any]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    end.synchronize()
    elapsed: float = start.elapsed_time(end)
    return elapsed


def _host_ms(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def _first_row(tensor: Tensor) -> Tensor:
    return tensor[:1] if tensor.ndim and len(tensor) == 2 else tensor


def pair_bytes(cut: Cut, prediction: int, kinds: Sequence[StepKind], images: int, element_size: int) -> int:
    """Bytes sent by both ranks of a pair together, without checksums.

    Full steps send each branch's prediction once. Half steps send what crosses the cut, and the prediction from the segment that
    computes it; the last one of a run only the prediction. Before the first of a run, rank 0, which ran the unconditional
    branch, receives what its segment reads.

    Args:
        cut: cut in two segments.
        prediction: elements of one branch's prediction, for one image.
        kinds: kind of each step: full, half or skip, as from ``read_pattern``.
        images: images in the batch.
        element_size: bytes of one element.
    """
    assert cut.segments == 2 and StepKind.PIPELINED not in kinds
    computed = [kind for kind in kinds if kind is not StepKind.SKIP]
    full, half = computed.count(StepKind.FULL), computed.count(StepKind.HALF)
    runs = sum(pair == (StepKind.FULL, StepKind.HALF) for pair in pairwise(computed))
    elements = 2 * full * prediction + half * prediction
    elements += (half - runs) * (cut.reads(0) + cut.reads(1)) + runs * cut.reads(0)
    return elements * images * element_size


def published_bytes(config: BytesConfig) -> dict[str, int]:
    """Bytes per image of a pair on a published denoiser at batch 1, by pattern of steps.

    Raises:
        UsageError: the network is unknown.
    """
    require_choice("bytes.network", config.network, published.NAMES)
    dtype = getattr(torch, config.dtype)
    denoiser: Any = published.build(config.network)
    args, kwargs = published.inputs(config.network, config.height, config.width, 1, dtype)
    cut = choose_cut(denoiser, args, kwargs, 2)
    latents = args[0] if args else kwargs["hidden_states"]
    prediction = latents[0, 0].numel() * int(denoiser.config["out_channels"])
    return {pattern: pair_bytes(cut, prediction, read_pattern(pattern), 1, dtype.itemsize) for pattern in config.patterns}
