"""What policies that foretell both branches have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybridiff.schedule.base import Branches
from hybridiff.schedule.forecast import Forecast
from hybridiff.schedule.sampler import Sampler

if TYPE_CHECKING:
    from torch import Tensor


class ForetoldPolicy:
    """Foretells e_c and D apart, and pays back what it got wrong; which steps are computed is for others to say.

    Args:
        sampler: Of the generation.
        trust: As ``Forecast`` has it.
        pay_back: As ``Forecast`` has it.
    """

    def __init__(self, sampler: Sampler, trust: float | None = None, pay_back: bool = True) -> None:
        self.sampler = sampler
        self.conditional = Forecast(sampler, trust, pay_back)
        self.difference = Forecast(sampler, trust, pay_back)

    def full(self, step: int, branches: Branches, discrepancy: Tensor) -> Branches | None:
        """Takes in both: what the sampler gets instead, None where nothing is owed."""
        conditional, error_c = self.conditional.compute(step, branches.conditional)
        difference, error_d = self.difference.compute(step, branches.difference)
        if error_c is not None and error_d is not None:
            self.learn(step, error_c, error_d)
        if conditional is None and difference is None:
            return None
        return Branches(
            branches.conditional if conditional is None else conditional,
            branches.difference if difference is None else difference,
        )

    def learn(self, step: int, error_c: Tensor, error_d: Tensor) -> None:
        """Told at each full step but the first how wrong both would have been foretold."""

    def half(self, step: int, conditional: Tensor) -> Branches:
        """e_c as computed, D foretold."""
        paid, _ = self.conditional.compute(step, conditional)
        return Branches(conditional if paid is None else paid, self.difference.predict(step))

    def skip(self, step: int) -> Branches:
        """Both foretold."""
        return Branches(self.conditional.predict(step), self.difference.predict(step))
