"""Kinds of steps, and what a schedule is.

A schedule is asked before each step and told after it; it knows no ranks. Every rank of a group holds the same numbers after
an exchange, so every rank's policy decides alike and no decision is ever sent.
"""

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Protocol

from torch import Tensor

from hybridiff.config import SCHEDULES, require_choice


class StepKind(Enum):
    """What one denoising step computes.

    FULL: both guidance branches by the whole network. HALF: the conditional branch alone, the guidance difference predicted.
    SKIP: nothing, both predicted.
    """

    FULL = "full"
    HALF = "half"
    SKIP = "skip"


class StepPolicy(Protocol):
    """The decisions of one generation."""

    def plan(self, step: int) -> StepKind:
        """The kind of the coming step, counted from 0 in sampling order."""
        ...

    def observe(self, step: int, discrepancy: Tensor, difference: Tensor) -> None:
        """Takes in a full step: discrepancy (batch,), guidance difference e_c - e_u (batch, channels, height, width)."""
        ...


class Schedule(Protocol):
    """A choice of steps, free of state: ``begin`` makes the state of one generation."""

    name: ClassVar[str]

    def begin(self, steps: int) -> StepPolicy:
        """A fresh policy for a generation of so many steps.

        Raises:
            UsageError: the schedule does not fit the number of steps.
        """
        ...


@dataclass(frozen=True)
class Full:
    """Every step full: condition-based partitioning alone (arXiv 2602.21760, section 3.2)."""

    name: ClassVar[str] = "full"

    def begin(self, steps: int) -> "Full":
        """Itself: there is no state."""
        return self

    def plan(self, step: int) -> StepKind:
        """Always full."""
        return StepKind.FULL

    def observe(self, step: int, discrepancy: Tensor, difference: Tensor) -> None:
        """Nothing depends on what a full step shows."""


def make_schedule(schedule: str | Schedule) -> Schedule:
    """A schedule by name with its defaults, or the given object itself.

    Raises:
        UsageError: the name is unknown.
    """
    if not isinstance(schedule, str):
        return schedule
    require_choice("schedule", schedule, SCHEDULES)
    return {Full.name: Full}[schedule]()
