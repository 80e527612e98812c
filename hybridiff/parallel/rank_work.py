"""The work of each rank in a step, and the transfers between ranks: pure functions of group size, number of images, and cut.

Rows are those of a doubled batch of B images: 0 to B - 1 unconditional, B to 2 B - 1 conditional.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hybridiff.models.cuts import Cut
from hybridiff.schedule import Schedule, StepKind

SEGMENTED = frozenset({StepKind.HALF, StepKind.PIPELINED})  # kinds of steps in which ranks may run segments of the network


def needs_segments(schedule: Schedule, group_size: int) -> bool:
    """Whether the ranks of a group may run segments of the network; a rank alone runs half steps with the whole of it."""
    return group_size > 1 and bool(schedule.kinds & SEGMENTED)


@dataclass(frozen=True)
class RankWork:
    """The computation of one rank in a step.

    Args:
        rows: rows of the doubled batch; the last may be repeated, so that all ranks have equally many.
        segment: segment of the network, None for the whole network.
    """

    rows: tuple[int, ...]
    segment: int | None = None


@dataclass(frozen=True)
class Transfer:
    """Rows of a block's output, sent from one rank of the group to another.

    Args:
        path: path of the block in the denoiser.
        source: sending rank of the group.
        target: receiving rank of the group.
        rows: rows of the doubled batch.
    """

    path: str
    source: int
    target: int
    rows: tuple[int, ...]


def split_rows(rows: int, ranks: int, rank: int) -> tuple[int, ...]:
    """The rows of a batch for one rank: consecutive, equally many on each rank, the last row repeated to fill up."""
    each = -(-rows // ranks)
    return tuple(min(rank * each + i, rows - 1) for i in range(each))


def work_of_ranks(kind: StepKind, group_size: int, images: int) -> tuple[RankWork, ...]:
    """The computation of each rank of a group in a step of a kind.

    A group of four generates two or more images in two lanes of two ranks each; a pipelined step has one lane per branch.
    """
    return tuple(_work(kind, group_size, images, rank) for rank in range(group_size))


def has_lanes(group_size: int, images: int) -> bool:
    """Whether each image of a step without guidance has several ranks: half and pipelined steps are segments only then."""
    return images < group_size and group_size % images == 0


def single_work(kind: StepKind, group_size: int, images: int) -> tuple[RankWork, ...]:
    """The computation of each rank in a step without guidance, whose rows are the images.

    The ranks share the images. Where there are fewer of them than ranks, each has a lane of its own, whose ranks compute the
    same in a full step, and one segment each in half and pipelined ones.
    """
    if not has_lanes(group_size, images):
        return tuple(RankWork(split_rows(images, group_size, rank)) for rank in range(group_size))
    full = kind is StepKind.FULL
    return tuple(RankWork((rank % images,), None if full else rank // images) for rank in range(group_size))


def _work(kind: StepKind, group_size: int, images: int, rank: int) -> RankWork:
    both = tuple(range(2 * images))
    if group_size == 1:
        return RankWork(both[images:] if kind is StepKind.HALF else both)
    lanes = 2 if group_size == 4 and (images > 1 or kind is StepKind.PIPELINED) else 1
    lane, seat, seats = rank % lanes, rank // lanes, group_size // lanes
    if kind is StepKind.PIPELINED:
        return RankWork(both if lanes == 1 else both[lane * images : (lane + 1) * images], seat)
    mine = split_rows(images, lanes, lane)
    conditional = tuple(images + image for image in mine)
    if kind is StepKind.HALF:
        return RankWork(conditional, seat)
    assert kind is StepKind.FULL, f"a {kind.value} step computes nothing"
    return RankWork(mine if seat < seats // 2 else conditional)


def segment_count(work: Sequence[RankWork]) -> int:
    """The number of segments that the ranks run; 1 for the whole network."""
    return 1 + max(rank.segment or 0 for rank in work)


def predicting_ranks(work: Sequence[RankWork], cut: Cut) -> tuple[int, ...]:
    """The ranks that run the last segment, and so have a prediction."""
    return tuple(number for number, rank in enumerate(work) if rank.segment == cut.prediction)


def transfers_after(work: Sequence[RankWork], cut: Cut) -> tuple[Transfer, ...]:
    """The transfers across the cut after a step: each output from the rank that runs its block to the readers of the lane."""
    return tuple(
        Transfer(path, source, target, tuple(dict.fromkeys(reader.rows)))
        for path, segment in cut.crossing
        for target, reader in enumerate(work)
        for source, owner in enumerate(work)
        if reader.segment == segment and owner.segment == cut.owner(path) and owner.rows == reader.rows
    )


class VersionTracker:
    """The step at which each rank's copy of each row of the crossing outputs was computed; equal on every rank.

    Args:
        group_size: ranks in the group.
    """

    def __init__(self, group_size: int) -> None:
        self._ranks = range(group_size)
        self._steps: dict[tuple[str, int, int], int] = {}  # (path, rank, row) -> step

    def record_computed(self, paths: Sequence[str], rank: int, rows: Sequence[int], step: int) -> None:
        """A rank has computed rows of some blocks' outputs at a step."""
        self._steps.update({(path, rank, row): step for path in paths for row in rows})

    def record_transfer(self, transfer: Transfer) -> None:
        """The target of a transfer has its source's version."""
        steps = {row: self._steps[transfer.path, transfer.source, row] for row in transfer.rows}
        self._steps.update({(transfer.path, transfer.target, row): step for row, step in steps.items()})

    def transfers_before(self, work: Sequence[RankWork], cut: Cut) -> tuple[Transfer, ...]:
        """The transfers needed before a step, so that each segment reads the newest version of its inputs."""
        found: dict[tuple[str, int, int], list[int]] = {}
        for path, segment in cut.crossing:
            for target, rank in enumerate(work):
                if rank.segment == segment:
                    for row in dict.fromkeys(rank.rows):
                        found.setdefault((path, self._newest(path, row, target), target), []).append(row)
        return tuple(Transfer(path, a, b, tuple(rows)) for (path, a, b), rows in found.items() if a != b)

    def _newest(self, path: str, row: int, target: int) -> int:
        """The rank with the newest version of a row: the target itself if it has it, else the lowest rank."""
        newest = max(self._ranks, key=lambda rank: (self._steps.get((path, rank, row), -1), rank == target, -rank))
        assert (path, newest, row) in self._steps, f"a segment reads {path} before any full step has computed it"
        return newest
