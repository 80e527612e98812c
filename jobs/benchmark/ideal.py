"""The speed-up that a mix of steps would have if only the network's arithmetic took time."""

from collections.abc import Mapping
from dataclasses import dataclass

from hybridiff.schedule import StepKind
from jobs.benchmark.config import check_patterns

LETTERS = {"F": StepKind.FULL, "H": StepKind.HALF, "S": StepKind.SKIP}


@dataclass(frozen=True)
class LargestSegment:
    """The largest segment's share of the network's FLOPs, with the network cut in two and in four."""

    two: float = 0.5
    four: float = 0.25


def rank_cost(counts: Mapping[StepKind, float], group_size: int, images: int, largest: LargestSegment) -> float:
    """What the busiest rank of a group computes, in passes of one branch of all ``images`` through the whole network.

    A group of 4 with more than one image is two lanes of two ranks, each with half of the images (an odd one is made twice);
    pipelined steps give a lane each branch.
    """
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
    baseline_steps: int, counts: Mapping[StepKind, float], group_size: int, images: int, largest: LargestSegment | None = None
) -> float:
    """The ideal speed-up over one rank that computes both branches at each of ``baseline_steps`` steps.

    Without ``largest``, segments are taken as equal: arXiv 2602.21760's 2 (F + H) / (F + H / 2) for a pair.
    """
    cost = rank_cost(counts, group_size, images, largest or LargestSegment())
    return 2 * baseline_steps / cost if cost else float("inf")


def read_pattern(pattern: str) -> list[StepKind]:
    """The steps of a pattern such as "F15 H5 F30".

    Raises:
        UsageError: it is none.
    """
    check_patterns("the pattern", [pattern])
    return [kind for word in pattern.split() for kind in [LETTERS[word[0]]] * int(word[1:])]
