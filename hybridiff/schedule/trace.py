"""The record of one generation: what kind each step was, and what it showed."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hybridiff.schedule.base import StepKind


@dataclass
class Trace:
    """Filled while a generation runs; tensors stay on their device until they are asked for."""

    schedule: str
    kinds: list[StepKind] = field(default_factory=list)
    discrepancies: list[Tensor] = field(default_factory=list)  # (batch,) for each full step with guidance

    def count(self, kind: StepKind) -> int:
        """How many steps were of a kind."""
        return self.kinds.count(kind)

    def curves(self) -> list[list[float]]:
        """Each image's discrepancy over the full steps; empty curves are not made where guidance was off."""
        if not self.discrepancies:
            return []
        curves: list[list[float]] = torch.stack(self.discrepancies, dim=1).tolist()
        return curves
