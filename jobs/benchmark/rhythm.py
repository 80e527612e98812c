"""A fixed rhythm of steps, with predictions of any kind: what experiments compare, and no schedule of the product."""

from dataclasses import dataclass
from typing import ClassVar

from hybridiff.errors import require
from hybridiff.schedule import Decision, Sampler, Schedule, StepKind
from hybridiff.schedule.extrapolate import ExtrapolatingPolicy
from jobs.benchmark.ideal import LETTERS


@dataclass(frozen=True)
class Rhythm(Schedule):
    """Full steps at the start, then a pattern of F, H and S over and over; the last step is full.

    Args:
        pattern: Such as "SF" or "HSF".
        damping: factor of the slope by which e_c and D are extrapolated; None to fit it for each image.
        compensate: whether errors are compensated.
        warm_up: Full steps at the start.
    """

    pattern: str
    damping: float | None = None
    compensate: bool = True
    warm_up: int = 5

    name: ClassVar[str] = "rhythm"

    def __post_init__(self) -> None:
        require(set(self.pattern) <= set("FHS") and "F" in self.pattern, "pattern", self.pattern, "F, H and S, at least one F")

    @property
    def kinds(self) -> frozenset[StepKind]:
        """Those of the pattern, and full."""
        return frozenset(LETTERS[letter] for letter in self.pattern + "F")

    def check(self, sampler: Sampler) -> None:
        """Fits all."""

    def begin(self, sampler: Sampler) -> "RhythmPolicy":
        """A fresh policy."""
        return RhythmPolicy(self, sampler)


class RhythmPolicy(ExtrapolatingPolicy):
    """The steps of one generation."""

    def __init__(self, rhythm: Rhythm, sampler: Sampler) -> None:
        super().__init__(sampler, rhythm.damping, rhythm.compensate)
        self.rhythm = rhythm

    def plan(self, step: int) -> Decision:
        """By the pattern alone."""
        after = step - self.rhythm.warm_up
        if after < 0 or step == self.sampler.steps - 1:
            return Decision(StepKind.FULL, "edge")
        return Decision(LETTERS[self.rhythm.pattern[after % len(self.rhythm.pattern)]], "rhythm")
