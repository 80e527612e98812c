"""Who computes what, and who lacks what: pure functions of group size, number of images, and cut. No tensors, no ranks of torch.

Rows are those of a doubled batch of B images: 0 to B - 1 unconditional, B to 2 B - 1 conditional.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hybridiff.models.cuts import Cut
from hybridiff.schedule import StepKind

SEGMENTED = frozenset({StepKind.HALF, StepKind.PIPELINED})  # kinds of steps in which ranks may run parts of the network


@dataclass(frozen=True)
class Part:
    """What one rank computes in a step.

    Args:
        rows: Of the doubled batch; the last may be repeated, so that all ranks have equally many.
        segment: Of the network, or None for the whole network.
    """

    rows: tuple[int, ...]
    segment: int | None = None


@dataclass(frozen=True)
class Transfer:
    """Some rows of an atom's output, sent from one rank of the group to another."""

    path: str
    source: int
    target: int
    rows: tuple[int, ...]


def share(rows: int, parts: int, index: int) -> tuple[int, ...]:
    """A part of a batch: consecutive rows, equally many in each part, the last repeated to fill up."""
    each = -(-rows // parts)
    return tuple(min(index * each + i, rows - 1) for i in range(each))


def parts(kind: StepKind, group_size: int, images: int) -> tuple[Part, ...]:
    """What each rank of a group computes in a step of a kind.

    A group of four makes two or more images in two lanes of two ranks (seats) each; a pipelined step has one lane per branch.
    """
    return tuple(_part(kind, group_size, images, rank) for rank in range(group_size))


def _part(kind: StepKind, group_size: int, images: int, rank: int) -> Part:
    both = tuple(range(2 * images))
    if group_size == 1:
        return Part(both[images:] if kind is StepKind.HALF else both)
    lanes = 2 if group_size == 4 and (images > 1 or kind is StepKind.PIPELINED) else 1
    lane, seat, seats = rank % lanes, rank // lanes, group_size // lanes
    if kind is StepKind.PIPELINED:
        return Part(both if lanes == 1 else both[lane * images : (lane + 1) * images], seat)
    mine = share(images, lanes, lane)
    conditional = tuple(images + image for image in mine)
    if kind is StepKind.HALF:
        return Part(conditional, seat)
    assert kind is StepKind.FULL, f"nothing is computed in a {kind.value} step"
    return Part(mine if seat < seats // 2 else conditional)


def segments(parts: Sequence[Part]) -> int:
    """Into how many segments the network is cut for these parts; 1 if it is not."""
    return 1 + max(part.segment or 0 for part in parts)


def results(parts: Sequence[Part], cut: Cut) -> tuple[int, ...]:
    """The ranks whose prediction counts: those that run the last segment."""
    return tuple(rank for rank, part in enumerate(parts) if part.segment == cut.prediction)


def deliveries(parts: Sequence[Part], cut: Cut) -> tuple[Transfer, ...]:
    """What crosses the cut after a step: each output from the rank that runs it to the ranks of its lane that read it."""
    return tuple(
        Transfer(path, source, target, tuple(dict.fromkeys(reader.rows)))
        for path, segment in cut.crossing
        for target, reader in enumerate(parts)
        for source, owner in enumerate(parts)
        if reader.segment == segment and owner.segment == cut.owner(path) and owner.rows == reader.rows
    )


class Ledger:
    """Which rank holds which version of which rows of the outputs that cross cuts. Every rank keeps the same one."""

    def __init__(self, group_size: int) -> None:
        self._ranks = range(group_size)
        self._steps: dict[tuple[str, int, int], int] = {}  # (path, rank, row) -> the step that computed it

    def note(self, paths: Sequence[str], rank: int, rows: Sequence[int], step: int) -> None:
        """A rank has computed some rows of some outputs."""
        self._steps.update({(path, rank, row): step for path in paths for row in rows})

    def deliver(self, transfer: Transfer) -> None:
        """What was sent is held by its target too."""
        steps = {row: self._steps[transfer.path, transfer.source, row] for row in transfer.rows}
        self._steps.update({(transfer.path, transfer.target, row): step for row, step in steps.items()})

    def missing(self, parts: Sequence[Part], cut: Cut) -> tuple[Transfer, ...]:
        """What must be fetched before a step, so that each reader holds the newest version there is."""
        found: dict[tuple[str, int, int], list[int]] = {}
        for path, segment in cut.crossing:
            for target, part in enumerate(parts):
                if part.segment == segment:
                    for row in dict.fromkeys(part.rows):
                        found.setdefault((path, self._source(path, row, target), target), []).append(row)
        return tuple(Transfer(path, a, b, tuple(rows)) for (path, a, b), rows in found.items() if a != b)

    def _source(self, path: str, row: int, target: int) -> int:
        """Who has the newest version of a row: the target itself, if it does."""
        newest = max(self._ranks, key=lambda rank: (self._steps.get((path, rank, row), -1), rank == target, -rank))
        assert (path, newest, row) in self._steps, f"a segment reads {path} before any full step has computed it"
        return newest
