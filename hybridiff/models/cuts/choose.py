"""Which cut: even enough that no segment waits long for another, with as little as possible to send.

Networks with skip connections are cut into nested regions, as a deep interval of the atoms exchanges two outputs with the rest
where a boundary between first and last half would be crossed by all skip connections. Four segments are two regions cut again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations
from typing import Any

from torch import nn

from hybridiff.errors import UsageError, require_choice
from hybridiff.models.cuts.count import count
from hybridiff.models.cuts.cut import Atom, Cut
from hybridiff.models.cuts.plans import require_plan

LARGEST_OF_TWO = 0.57  # share of FLOPs up to which one of two segments may grow for less to send
SLACK_OF_FOUR = 0.01  # share of FLOPs by which four segments may be less even than possible for less to send
SEGMENTS = (1, 2, 4)


def choose_cut(denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], segments: int) -> Cut:
    """The best cut of a denoiser at the resolution in use; takes a second or two, and no weights are touched.

    Args:
        denoiser: Of a class with a plan, built from its ``config``.
        args: What the pipeline passes to forward, with any number of batch rows; shapes are all that is looked at.
        kwargs: Likewise.
        segments: 1, 2 or 4.

    Raises:
        UsageError: the denoiser has no plan or fewer blocks than segments, or the call skips blocks.
    """
    atoms = require_plan(denoiser)
    if len(atoms) < segments:
        raise UsageError(f"{type(denoiser).__name__} has {len(atoms)} blocks; allowed: at least {segments}, one per segment")
    return best_cut(atoms, *count(denoiser, atoms, args, kwargs), segments)


def best_cut(atoms: tuple[Atom, ...], flops: Sequence[int], elements: Sequence[int], segments: int) -> Cut:
    """The cut of atoms with these FLOPs and output elements that sends least, of all that are about even.

    Raises:
        UsageError: ``segments`` is not 1, 2 or 4.
    """
    require_choice("segments", segments, SEGMENTS)
    counted = _Counted.of(atoms, flops, elements)
    candidates = counted.consecutive(segments) if counted.is_chain else counted.nested(segments)
    rated = [(counted.largest(owners), owners) for owners in candidates]
    least, total = min(rated)[0], sum(flops)
    limit = max(least, LARGEST_OF_TWO * total) if segments == 2 else least + SLACK_OF_FOUR * total
    even = [(counted.sent(owners), largest, owners) for largest, owners in rated if largest <= limit]
    owners = min(even)[-1]
    return _numbered(Cut(atoms, owners, segments, counted.sums(owners), tuple(elements)))


def _numbered(cut: Cut) -> Cut:
    """The same cut, its segments in order of what they read, or of execution where they read alike."""
    order = sorted(range(cut.segments), key=lambda segment: (cut.reads(segment), cut.owners.index(segment)))
    owners = tuple(order.index(owner) for owner in cut.owners)
    return Cut(cut.atoms, owners, cut.segments, tuple(cut.flops[old] for old in order), cut.elements)


@dataclass(frozen=True)
class _Counted:
    """Atoms by number: ``reads`` are pairs (producer, consumer)."""

    flops: Sequence[int]
    elements: Sequence[int]
    reads: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, atoms: tuple[Atom, ...], flops: Sequence[int], elements: Sequence[int]) -> "_Counted":
        index = {atom.path: number for number, atom in enumerate(atoms)}
        return cls(flops, elements, tuple((index[path], index[atom.path]) for atom in atoms for path in atom.inputs))

    @property
    def is_chain(self) -> bool:
        return all(consumer == producer + 1 for producer, consumer in self.reads)

    def sums(self, owners: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sum(f for f, o in zip(self.flops, owners, strict=True) if o == s) for s in range(max(owners) + 1))

    def largest(self, owners: tuple[int, ...]) -> int:
        return max(self.sums(owners))

    def sent(self, owners: tuple[int, ...]) -> int:
        """Elements that cross, an output once for each segment that reads it."""
        crossing = {(p, owners[c]) for p, c in self.reads if owners[p] != owners[c]}
        return sum(self.elements[producer] for producer, _ in crossing)

    def consecutive(self, segments: int) -> Iterator[tuple[int, ...]]:
        """All cuts of a chain into consecutive segments."""
        numbers = range(len(self.flops))
        for bounds in combinations(numbers[1:], segments - 1):
            yield tuple(sum(number >= bound for bound in bounds) for number in numbers)

    def nested(self, segments: int) -> Iterator[tuple[int, ...]]:
        """Cuts into an interval and the rest; for four segments the even ones of them, with both parts cut evenly once more."""
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
        """Gives to ``new`` the interval of a segment's atoms that is nearest to half of its FLOPs."""
        region = [number for number, owner in enumerate(owners) if owner == segment]
        before = [0, *accumulate(self.flops[number] for number in region)]
        intervals = [(i, j) for i, j in combinations(range(len(before)), 2) if j - i < len(region)]
        i, j = min(intervals, key=lambda ij: abs(2 * (before[ij[1]] - before[ij[0]]) - before[-1]))
        return _give(owners, region[i:j], new)


def _give(owners: tuple[int, ...], numbers: Sequence[int], new: int) -> tuple[int, ...]:
    taken = set(numbers)
    return tuple(new if number in taken else owner for number, owner in enumerate(owners))
