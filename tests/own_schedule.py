"""A schedule of one's own, as docs/how-to/own-schedule.md shows it: every other step is skipped, its prediction carried over."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hybridiff.errors import require
from hybridiff.schedule import Branches, Decision, Sampler, Schedule, StepKind, StepPolicy


@dataclass(frozen=True)
class EveryOther(Schedule):
    """Full steps, and after each one a skip step that repeats its prediction.

    Args:
        warm_up: Full steps at the start.
    """

    warm_up: int = 4

    name: ClassVar[str] = "every other"
    kinds: ClassVar[frozenset[StepKind]] = frozenset({StepKind.FULL, StepKind.SKIP})

    def __post_init__(self) -> None:
        require(self.warm_up >= 1, "warm_up", self.warm_up, "1 or more")

    def begin(self, sampler: Sampler) -> "EveryOtherPolicy":
        return EveryOtherPolicy(self.warm_up)


class EveryOtherPolicy(StepPolicy):
    """The decisions of one generation."""

    def __init__(self, warm_up: int) -> None:
        self.warm_up = warm_up
        self.last: Branches | None = None

    def plan(self, step: int) -> Decision:
        skipped = step >= self.warm_up and (step - self.warm_up) % 2 == 0
        return Decision(StepKind.SKIP if skipped else StepKind.FULL, "every other")

    def full(self, step: int, branches: Branches, discrepancy: Tensor) -> None:
        self.last = branches

    def skip(self, step: int) -> Branches:
        assert self.last is not None
        return self.last
