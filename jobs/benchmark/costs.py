"""What the kinds of step cost on one device, and the speed-up that a pair of such devices can be expected to have.

Expected, not measured: the time of exchanging is left out, and on two devices nothing else shares the memory.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from hybridiff.models.cuts import choose_cut
from hybridiff.models.inputs import map_tensors
from hybridiff.parallel.activations import BlockHooks
from hybridiff.schedule import StepKind
from jobs.benchmark.config import CostsConfig
from jobs.benchmark.ideal import read_pattern


@dataclass(frozen=True)
class Expected:
    """The speed-ups that a mix of steps can be expected to have over one device with plain guidance: on a pair, and on one."""

    pair: float
    alone: float


@dataclass(frozen=True)
class Costs:
    """Medians in milliseconds of one call of a denoiser for one image.

    Args:
        both_ms: Both branches in one batch: a step of plain guidance, and of a group of 1.
        branch_ms: One branch by the whole network: a full step of a pair.
        segments_ms: Each segment of one branch; a half step of a pair takes as long as the longest.
        flops_share: The larger segment's share of the FLOPs.
        expected: By pattern of steps.
    """

    both_ms: float
    branch_ms: float
    segments_ms: tuple[float, ...]
    flops_share: float
    expected: dict[str, Expected]


@torch.no_grad()
def measure_costs(denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], config: CostsConfig) -> Costs:
    """Times a denoiser's call, both branches of one image, in whole and in parts.

    Args:
        denoiser: On the device, in the arithmetic, of the measurement; as it was afterwards.
        args: Positional arguments of its call, tensors with 2 rows.
        kwargs: Keyword arguments, likewise.
        config: Repeats and patterns.

    Raises:
        UsageError: the network can't be cut, or a pattern is none.
    """
    patterns = {pattern: Counter(read_pattern(pattern)) for pattern in config.patterns}
    cut = choose_cut(denoiser, args, kwargs, 2)
    one = map_tensors(_first_row, (args, kwargs))
    hooks = BlockHooks(denoiser)
    outputs: dict[str, Any] = {}

    def branch(segment: int | None = None) -> None:
        stood_in = [] if segment is None else [block.path for block in cut.blocks if cut.owner(block.path) != segment]
        with hooks.execution({path: outputs[path] for path in stood_in}, None):
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
    return Costs(both_ms, branch_ms, tuple(segments_ms), cut.largest_share, expected)


def expect(both_ms: float, branch_ms: float, segment_ms: float, counts: Mapping[StepKind, int]) -> Expected:
    """The expected speed-ups of full, half and skip steps over as many steps of plain guidance."""
    plain = both_ms * sum(counts.values())
    full, half = counts.get(StepKind.FULL, 0), counts.get(StepKind.HALF, 0)
    return Expected(plain / (full * branch_ms + half * segment_ms), plain / (full * both_ms + half * branch_ms))


def _medians_ms(calls: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    """Of each call; they take turns, so that drift hits all alike, and the first turn is discarded."""
    clock = _cuda_ms if torch.cuda.is_initialized() else _host_ms
    turns = [[clock(call) for call in calls] for _ in range(repeats + 1)]
    return [median(taken) for taken in zip(*turns[1:], strict=True)]


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
