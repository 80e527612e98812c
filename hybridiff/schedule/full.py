"""Every step full."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hybridiff.schedule.base import Branches, Decision, Schedule, StepKind
from hybridiff.schedule.sampler import Sampler
from hybridiff.schedule.tensor import Tensor


@dataclass(frozen=True)
class Full(Schedule):
    """Every step full: condition-based partitioning alone (arXiv 2602.21760, section 3.2). A policy too: there is no state."""

    name: ClassVar[str] = "full"
    kinds: ClassVar[frozenset[StepKind]] = frozenset({StepKind.FULL})

    def check(self, sampler: Sampler) -> None:
        """Fits all."""

    def begin(self, sampler: Sampler) -> Full:
        """Itself."""
        return self

    def plan(self, step: int) -> Decision:
        """Always full."""
        return Decision(StepKind.FULL, "full")

    def full(self, step: int, branches: Branches, discrepancy: Tensor) -> None:
        """Nothing depends on what a step shows."""

    def half(self, step: int, conditional: Tensor) -> Branches:
        """Never asked for."""
        raise AssertionError("full has no half steps")

    def skip(self, step: int) -> Branches:
        """Never asked for."""
        raise AssertionError("full has no skip steps")
