"""Half steps, refreshed by full steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hybridiff.errors import UsageError, require, require_choice, require_whole
from hybridiff.schedule.base import Decision, Schedule, StepKind
from hybridiff.schedule.sampler import Sampler
from hybridiff.schedule.window import GUIDANCES, HALF_OR_FULL, WindowPolicy


@dataclass(frozen=True)
class Refresh(Schedule):
    """Half steps from ``first`` to ``last``, with a full step after every ``refresh_every`` of them.

    Args:
        first: The first half step; 0 is never one.
        last: The last step that may be a half step; negative counts from the end.
        refresh_every: Half steps between two full ones.
        guidance: In half steps: merged, carry or extrapolate.
    """

    first: int = 8
    last: int = -3
    refresh_every: int = 1
    guidance: str = "extrapolate"

    name: ClassVar[str] = "refresh"
    kinds: ClassVar[frozenset[StepKind]] = HALF_OR_FULL

    def __post_init__(self) -> None:
        for name in ("first", "last", "refresh_every"):
            require_whole(name, getattr(self, name))
        require(self.first >= 1, "first", self.first, "step 1 or later")
        require(self.refresh_every >= 1, "refresh_every", self.refresh_every, "1 half step or more")
        require_choice("guidance", self.guidance, GUIDANCES)

    def final(self, sampler: Sampler) -> int:
        """The last step that may be a half step, counted from 0."""
        return self.last if self.last >= 0 else sampler.steps + self.last

    def check(self, sampler: Sampler) -> None:
        """Refuses a window that does not fit the steps.

        Raises:
            UsageError: naming first, last and the number of steps.
        """
        if not self.first <= self.final(sampler) < sampler.steps:
            raise UsageError(
                f"first is {self.first} and last is {self.last}; allowed: first <= last < {sampler.steps}, the number of steps"
            )

    def begin(self, sampler: Sampler) -> RefreshPolicy:
        """A fresh policy. Raises as ``check`` does."""
        self.check(sampler)
        return RefreshPolicy(self, sampler)


class RefreshPolicy(WindowPolicy):
    """The decisions of one generation."""

    def __init__(self, schedule: Refresh, sampler: Sampler) -> None:
        super().__init__(schedule.guidance, sampler)
        self.first, self.final, self.every = schedule.first, schedule.final(sampler), schedule.refresh_every

    def plan(self, step: int) -> Decision:
        """Full outside of the window and after every few half steps."""
        if not self.first <= step <= self.final:
            return Decision(StepKind.FULL, "outside")
        place = (step - self.first) % (self.every + 1)
        if place == self.every:
            return Decision(StepKind.FULL, "refresh")
        return Decision(StepKind.HALF, "window", last=place == self.every - 1 or step == self.final)
