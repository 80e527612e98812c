"""The record of one generation: what kind each step was and why, and what it showed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hybridiff.schedule.base import Decision, StepKind

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Trace:
    """Filled while a generation runs; tensors stay on their device until they are asked for.

    Args:
        schedule: Its name.
        decisions: One for each step, with kind, reason, and the slope or error that decided.
        discrepancies: (batch,) for each full or pipelined step with guidance.
    """

    schedule: str
    decisions: list[Decision] = field(default_factory=list)
    discrepancies: list[Tensor] = field(default_factory=list)

    @property
    def kinds(self) -> list[StepKind]:
        """The kind of each step."""
        return [decision.kind for decision in self.decisions]

    @property
    def tau1(self) -> int | None:
        """The first step that was not full (the paper's tau1); None if all were."""
        return next((i for i, kind in enumerate(self.kinds) if kind is not StepKind.FULL), None)

    @property
    def tau2(self) -> int | None:
        """The step after the last that was not full (the paper's tau2 = tau1 + k); None if all were full."""
        reduced = [i for i, kind in enumerate(self.kinds) if kind is not StepKind.FULL]
        return reduced[-1] + 1 if reduced else None

    @property
    def tau1_reason(self) -> str | None:
        """Why tau1 fell where it did, such as "slope" or "cap"."""
        return None if self.tau1 is None else self.decisions[self.tau1].reason

    def count(self, kind: StepKind) -> int:
        """How many steps were of a kind."""
        return self.kinds.count(kind)

    def curves(self) -> list[list[float]]:
        """Each image's discrepancy over the full steps; empty curves are not made where guidance was off."""
        if not self.discrepancies:
            return []
        import torch

        curves: list[list[float]] = torch.stack(self.discrepancies, dim=1).tolist()
        return curves
