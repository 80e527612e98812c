"""The choice of a cut: segments of about equal FLOPs, with as few elements as possible to send between them.

Networks with skip connections are cut into an inner interval of blocks and the rest: the interval exchanges two outputs with the
rest, whereas a cut in the middle would be crossed by all skip connections. Four segments are the two regions, each cut once more.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations
from typing import Any

from torch import nn

from hybridiff.errors import UsageError, require_choice
from hybridiff.models.cuts.cut import Block, Cut
from hybridiff.models.cuts.flops import count_blocks
from hybridiff.models.cuts.plans import require_plan

LARGEST_OF_TWO = 0.57  # fraction of the FLOPs up to which one of two segments may grow to send less
SLACK_OF_FOUR = 0.01  # fraction of the FLOPs by which the largest of four segments may exceed the least possible to send less
SEGMENTS = (1, 2, 4)


def choose_cut(denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], segments: int) -> Cut:
    """The best cut of a denoiser at the resolution in use; takes about a second, and reads no weights.

    Args:
        denoiser: network of a class with a plan.
        args: positional arguments of the pipeline's call, with any number of batch rows; only shapes are read.
        kwargs: keyword arguments of the call; only shapes are read.
        segments: number of segments: 1, 2 or 4.

    Raises:
        UsageError: the denoiser has no plan or fewer blocks than segments, or the call skips blocks.
    """
    blocks = require_plan(denoiser)
    if len(blocks) < segments:
        raise UsageError(f"{type(denoiser).__name__} has {len(blocks)} blocks; allowed: at least {segments}, one per segment")
    return best_cut(blocks, *count_blocks(denoiser, blocks, args, kwargs), segments)


def best_cut(blocks: tuple[Block, ...], flops: Sequence[int], elements: Sequence[int], segments: int) -> Cut:
    """The cut that sends the fewest elements, of all whose segments are about equal.

    Args:
        blocks: blocks in order of execution.
        flops: FLOPs of each block.
        elements: output elements of each block.
        segments: number of segments: 1, 2 or 4.

    Raises:
        UsageError: ``segments`` is not 1, 2 or 4.
    """
    require_choice("segments", segments, SEGMENTS)
    counted = _Counted.of(blocks, flops, elements)
    candidates = counted.consecutive(segments) if counted.is_chain else counted.nested(segments)
    rated = [(counted.largest(owners), owners) for owners in candidates]
    least, total = min(rated)[0], sum(flops)
    limit = max(least, LARGEST_OF_TWO * total) if segments == 2 else least + SLACK_OF_FOUR * total
    even = [(counted.sent(owners), largest, owners) for largest, owners in rated if largest <= limit]
    owners = min(even)[-1]
    return _numbered(Cut(blocks, owners, segments, counted.sums(owners), tuple(elements)))


def _numbered(cut: Cut) -> Cut:
    """The same cut with segments numbered by the elements that they read, and by execution order where those are equal."""
    order = sorted(range(cut.segments), key=lambda segment: (cut.reads(segment), cut.owners.index(segment)))
    owners = tuple(order.index(owner) for owner in cut.owners)
    return Cut(cut.blocks, owners, cut.segments, tuple(cut.flops[old] for old in order), cut.elements)


@dataclass(frozen=True)
class _Counted:
    """Blocks by number; ``reads`` are pairs (producer, consumer)."""

    flops: Sequence[int]
    elements: Sequence[int]
    reads: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, blocks: tuple[Block, ...], flops: Sequence[int], elements: Sequence[int]) -> "_Counted":
        index = {block.path: number for number, block in enumerate(blocks)}
        return cls(flops, elements, tuple((index[path], index[block.path]) for block in blocks for path in block.inputs))

    @property
    def is_chain(self) -> bool:
        return all(consumer == producer + 1 for producer, consumer in self.reads)

    def sums(self, owners: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sum(f for f, o in zip(self.flops, owners, strict=True) if o == s) for s in range(max(owners) + 1))

    def largest(self, owners: tuple[int, ...]) -> int:
        return max(self.sums(owners))

    def sent(self, owners: tuple[int, ...]) -> int:
        """Elements sent: each output once per other segment that reads it."""
        crossing = {(p, owners[c]) for p, c in self.reads if owners[p] != owners[c]}
        return sum(self.elements[producer] for producer, _ in crossing)

    def consecutive(self, segments: int) -> Iterator[tuple[int, ...]]:
        """All cuts of a chain into consecutive segments."""
        numbers = range(len(self.flops))
        for bounds in combinations(numbers[1:], segments - 1):
            yield tuple(sum(number >= bound for bound in bounds) for number in numbers)

    def nested(self, segments: int) -> Iterator[tuple[int, ...]]:
        """Cuts into an interval and the rest; for four segments, those with about equal regions, each region halved once more."""
        whole = (0,) * len(self.flops)
        if segments == 1:
            yield whole
            return
        halves = [_give(whole, range(i, j), 1) for i, j in combinations(range(len(whole) + 1), 2) if j - i < len(whole)]
        if segments == 2:
            yield from halves
            return
        halves = [owners for owners in halves if 2 <= sum(owners) <= len(owners) - 2]
        limit = max(min(map(self.largest, halves)), LARGEST_OF_TWO * sum(self.flops))
        for owners in halves:
            if self.largest(owners) <= limit:
                yield self.halved(self.halved(owners, 0, 2), 1, 3)

    def halved(self, owners: tuple[int, ...], segment: int, new: int) -> tuple[int, ...]:
        """Moves to segment ``new`` the interval of a segment's blocks whose FLOPs are nearest to half of the segment's."""
        region = [number for number, owner in enumerate(owners) if owner == segment]
        before = [0, *accumulate(self.flops[number] for number in region)]
        intervals = [(i, j) for i, j in combinations(range(len(before)), 2) if j - i < len(region)]
        i, j = min(intervals, key=lambda ij: abs(2 * (before[ij[1]] - before[ij[0]]) - before[-1]))
        return _give(owners, region[i:j], new)


def _give(owners: tuple[int, ...], numbers: Sequence[int], new: int) -> tuple[int, ...]:
    moved = set(numbers)
    return tuple(new if number in moved else owner for number, owner in enumerate(owners))
