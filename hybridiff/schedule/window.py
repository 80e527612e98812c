"""What windows of half steps have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybridiff.schedule.base import Branches, StepKind
from hybridiff.schedule.forecast import Forecast
from hybridiff.schedule.sampler import Sampler

if TYPE_CHECKING:
    from torch import Tensor

GUIDANCES = ("merged", "carry", "extrapolate")
_TRUST = {"carry": 0.0, "extrapolate": 1.0}
HALF_OR_FULL = frozenset({StepKind.FULL, StepKind.HALF})


class WindowPolicy:
    """What a window's half steps take for the guidance difference D.

    ``merged``: none, e_c stands for both branches (arXiv 2602.21760, section 3.4); ``carry``: the last one; ``extrapolate``: the
    line through the last two.
    """

    def __init__(self, guidance: str, sampler: Sampler) -> None:
        merged = guidance == "merged"
        self.difference = None if merged else Forecast(sampler, trust=_TRUST[guidance], pay_back=False)

    def full(self, step: int, branches: Branches, discrepancy: Tensor) -> None:
        """Remembers D."""
        if self.difference is not None:
            self.difference.compute(step, branches.difference)

    def half(self, step: int, conditional: Tensor) -> Branches:
        """e_c as computed, with D foretold."""
        import torch

        difference = torch.zeros_like(conditional) if self.difference is None else self.difference.predict(step)
        return Branches(conditional, difference)

    def skip(self, step: int) -> Branches:
        """Never asked for."""
        raise AssertionError("a window has no skip steps")
