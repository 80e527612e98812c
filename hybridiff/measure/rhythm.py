"""A fixed rhythm of steps, with predictions of any kind: what experiments compare, and no schedule of the product."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hybridiff.config import require
from hybridiff.schedule import Branches, Decision, Sampler, StepKind
from hybridiff.schedule.forecast import Forecast

_LETTERS = {"F": StepKind.FULL, "H": StepKind.HALF, "S": StepKind.SKIP}


@dataclass(frozen=True)
class Rhythm:
    """Full steps at the start, then a pattern of F, H and S over and over; the last step is full.

    Args:
        pattern: Such as "SF" or "HSF".
        trust: Of the line by which e_c and D are predicted; None to fit it for each image.
        pay_back: Whether what predictions got wrong is paid back.
        warm_up: Full steps at the start.
    """

    pattern: str
    trust: float | None = None
    pay_back: bool = True
    warm_up: int = 5

    name: ClassVar[str] = "rhythm"

    def __post_init__(self) -> None:
        require(set(self.pattern) <= set(_LETTERS) and "F" in self.pattern, "pattern", self.pattern, "F, H and S, at least one F")

    @property
    def kinds(self) -> frozenset[StepKind]:
        """Those of the pattern, and full."""
        return frozenset(_LETTERS[letter] for letter in self.pattern + "F")

    def check(self, sampler: Sampler) -> None:
        """Fits all."""

    def begin(self, sampler: Sampler) -> "RhythmPolicy":
        """A fresh policy."""
        return RhythmPolicy(self, sampler)


class RhythmPolicy:
    """The steps of one generation."""

    def __init__(self, rhythm: Rhythm, sampler: Sampler) -> None:
        self.rhythm = rhythm
        self.steps = sampler.steps
        self.conditional = Forecast(sampler, rhythm.trust, rhythm.pay_back)
        self.difference = Forecast(sampler, rhythm.trust, rhythm.pay_back)

    def plan(self, step: int) -> Decision:
        """By the pattern alone."""
        after = step - self.rhythm.warm_up
        if after < 0 or step == self.steps - 1:
            return Decision(StepKind.FULL, "edge")
        return Decision(_LETTERS[self.rhythm.pattern[after % len(self.rhythm.pattern)]], "rhythm")

    def full(self, step: int, branches: Branches, discrepancy: Tensor) -> Branches:
        """Takes in both; what the sampler gets instead."""
        conditional, _ = self.conditional.compute(step, branches.conditional)
        difference, _ = self.difference.compute(step, branches.difference)
        return Branches(
            branches.conditional if conditional is None else conditional,
            branches.difference if difference is None else difference,
        )

    def half(self, step: int, conditional: Tensor) -> Branches:
        """e_c taken in, D predicted."""
        paid, _ = self.conditional.compute(step, conditional)
        return Branches(conditional if paid is None else paid, self.difference.predict(step))

    def skip(self, step: int) -> Branches:
        """Both predicted."""
        return Branches(self.conditional.predict(step), self.difference.predict(step))
