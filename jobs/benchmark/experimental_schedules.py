"""Schedules for the experiments alone: a fixed pattern of steps, and the controller that ``adaptive`` grew from."""

from dataclasses import dataclass
from math import floor, pi, sqrt
from typing import ClassVar

from torch import Tensor

from hybridiff.errors import require
from hybridiff.schedule import Branches, Decision, Sampler, Schedule, StepKind
from hybridiff.schedule.extrapolate import ExtrapolatingPolicy, Extrapolation
from jobs.benchmark.costs import LETTERS

LONGEST = 4  # steps that are not full, in a row
WARM_UP = 5
LATENT_SIZE = sqrt(2 / pi)  # mean of |x| over latents of unit variance


@dataclass(frozen=True)
class DampedLine(Schedule):
    """Step-size control as in a solver: the error of D limits the half steps that follow; that of e_c, whether one is skipped.

    The error at a full step is w T s mean|D^ - D| / mean|x|, with T steps of which this one moves the latents by s per unit of
    prediction. After a gap of n steps, floor(n (tolerance / error)^(1 / order)) - 1 steps that are not full follow, 4 at most.

    Args:
        tolerance: tolerance of the error of D.
        skip_tolerance: tolerance of the error of e_c, which has no w; None to skip nothing.
        damping: damping factor of the slope of D^; the slope of e_c is not damped.
        order: assumed power of the distance with which the error grows.
    """

    tolerance: float
    skip_tolerance: float | None = None
    damping: float = 1.0
    order: int = 2

    name: ClassVar[str] = "damped line"
    kinds: ClassVar[frozenset[StepKind]] = frozenset({StepKind.FULL, StepKind.HALF, StepKind.SKIP})

    def __post_init__(self) -> None:
        require(self.tolerance > 0, "tolerance", self.tolerance, "more than 0")
        require(self.order in (1, 2), "order", self.order, "1 or 2")

    def check(self, sampler: Sampler) -> None:
        """Accepts every sampler."""

    def begin(self, sampler: Sampler) -> "DampedLinePolicy":
        """A fresh policy."""
        return DampedLinePolicy(self, sampler)

    def steps_left_out(self, gap: int, error: float, tolerance: float) -> int:
        """Steps that may be left out after a prediction over a gap of steps had this error."""
        reach = gap * (tolerance / error) ** (1 / self.order) if error else float(LONGEST + 1)
        return max(0, floor(min(reach, LONGEST + 1)) - 1)


class DampedLinePolicy(ExtrapolatingPolicy):
    """The steps of one generation."""

    def __init__(self, schedule: DampedLine, sampler: Sampler) -> None:
        super().__init__(sampler, schedule.damping, compensate=False)
        self.conditional = Extrapolation(sampler, damping=1.0, compensate=False)
        self.schedule = schedule
        self._left = 0  # steps until the next full one
        self._skip = False

    def plan(self, step: int) -> Decision:
        """Full at the edges and at the end of a run; else half, after at most one skip."""
        if step < WARM_UP or step == self.sampler.steps - 1 or not self._left:
            return Decision(StepKind.FULL, "edge or error")
        self._left -= 1
        skip, self._skip = self._skip, False
        return Decision(StepKind.SKIP if skip else StepKind.HALF, "error")

    def full(self, step: int, branches: Branches, discrepancy: Tensor) -> None:
        """Plans the run."""
        gap = step - self.difference.last
        self._compute(step, branches.conditional)
        _, wrong = self.difference.observe(step, branches.difference)
        if wrong is not None:
            error = self.sampler.guidance_scale * self._error(step, wrong)
            self._left = self.schedule.steps_left_out(gap, error, self.schedule.tolerance)

    def half(self, step: int, conditional: Tensor) -> Branches:
        """e_c as computed, D extrapolated."""
        self._compute(step, conditional)
        return Branches(conditional, self.difference.extrapolate(step))

    def _compute(self, step: int, conditional: Tensor) -> None:
        gap = step - self.conditional.last
        _, wrong = self.conditional.observe(step, conditional)
        if wrong is not None and self.schedule.skip_tolerance is not None:
            self._skip = self.schedule.steps_left_out(gap, self._error(step, wrong), self.schedule.skip_tolerance) > 0

    def _error(self, step: int, wrong: Tensor) -> float:
        return self.sampler.steps * self.sampler.gains[step] * wrong.abs().mean().item() / LATENT_SIZE


@dataclass(frozen=True)
class FixedPattern(Schedule):
    """Full steps at the start, then a pattern of F, H and S over and over; the last step is full.

    Args:
        pattern: letters such as "SF" or "HSF".
        damping: damping factor of the slope by which e_c and D are extrapolated; None fits it for each image.
        compensate: whether errors of extrapolated steps are compensated at the next computed step.
        warm_up: number of full steps at the start.
    """

    pattern: str
    damping: float | None = None
    compensate: bool = True
    warm_up: int = 5

    name: ClassVar[str] = "fixed pattern"

    def __post_init__(self) -> None:
        require(set(self.pattern) <= set("FHS") and "F" in self.pattern, "pattern", self.pattern, "F, H and S, at least one F")

    @property
    def kinds(self) -> frozenset[StepKind]:
        """The kinds in the pattern, and full."""
        return frozenset(LETTERS[letter] for letter in self.pattern + "F")

    def check(self, sampler: Sampler) -> None:
        """Accepts every sampler."""

    def begin(self, sampler: Sampler) -> "FixedPatternPolicy":
        """A fresh policy."""
        return FixedPatternPolicy(self, sampler)


class FixedPatternPolicy(ExtrapolatingPolicy):
    """The steps of one generation."""

    def __init__(self, schedule: FixedPattern, sampler: Sampler) -> None:
        super().__init__(sampler, schedule.damping, schedule.compensate)
        self.schedule = schedule

    def plan(self, step: int) -> Decision:
        """Follows the pattern alone."""
        after = step - self.schedule.warm_up
        if after < 0 or step == self.sampler.steps - 1:
            return Decision(StepKind.FULL, "edge")
        return Decision(LETTERS[self.schedule.pattern[after % len(self.schedule.pattern)]], "pattern")
