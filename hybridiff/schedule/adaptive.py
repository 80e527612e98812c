"""Full, half and skip steps chosen by the extrapolation error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby, product
from typing import ClassVar

from hybridiff.errors import require, require_positive, require_whole
from hybridiff.schedule.base import Branches, Decision, Schedule, StepKind
from hybridiff.schedule.extrapolate import ExtrapolatingPolicy
from hybridiff.schedule.sampler import Sampler
from hybridiff.schedule.tensor import Tensor

MAX_RUN = 8  # steps; all runs up to this length are compared


@dataclass(frozen=True)
class Adaptive(Schedule):
    """Extrapolates steps as long as the error stays small, as an ODE solver controls its step size.

    At each full step the extrapolations of e_c and D are compared with the computed values, in units of their effect on the
    latents. These errors determine the steps until the next full one: see ``cheapest_run``.

    Args:
        tolerance: error that is worth one full step: the displacement of the latents relative to their size, as if it were made
            at all steps. Smaller gives better images, larger is faster.
        max_half_steps: largest number of half steps in a row, 0 to 8.
        max_skip_steps: largest number of skip steps in a row, 0 to 8.
        min_full_steps: full steps at the start, 2 or more; the last two steps are full as well.
    """

    tolerance: float = 0.6
    max_half_steps: int = 4
    max_skip_steps: int = 4
    min_full_steps: int = 5

    name: ClassVar[str] = "adaptive"

    def __post_init__(self) -> None:
        require_positive("tolerance", self.tolerance)
        for name in ("max_half_steps", "max_skip_steps", "min_full_steps"):
            require_whole(name, getattr(self, name))
        for name in ("max_half_steps", "max_skip_steps"):
            require(0 <= getattr(self, name) <= MAX_RUN, name, getattr(self, name), f"0 to {MAX_RUN}")
        require(self.min_full_steps >= 2, "min_full_steps", self.min_full_steps, "2 or more")

    @property
    def kinds(self) -> frozenset[StepKind]:
        """Full and skip steps, and half steps unless ``max_half_steps`` is 0 (no cut of the network is needed then)."""
        return frozenset({StepKind.FULL, StepKind.SKIP} | ({StepKind.HALF} if self.max_half_steps else set()))

    def without_half_steps(self) -> Adaptive:
        """The same with ``max_half_steps`` 0."""
        return replace(self, max_half_steps=0)

    def begin(self, sampler: Sampler) -> AdaptivePolicy:
        """A new policy; where there are few steps, all are full."""
        return AdaptivePolicy(self, sampler)


class AdaptivePolicy(ExtrapolatingPolicy):
    """Plans a run of steps at each full step.

    Args:
        schedule: options.
        sampler: sampler of the generation.
    """

    def __init__(self, schedule: Adaptive, sampler: Sampler) -> None:
        super().__init__(sampler)
        self.schedule = schedule
        self._run: list[StepKind] = []  # kinds of the steps until the next full one
        self._gaps = (1, 1)  # steps since e_c and D were last computed, at the last full step
        self._error: float | None = None

    def plan(self, step: int) -> Decision:
        """The next step of the planned run; a full one after its end."""
        if not self._run:
            if step < self.schedule.min_full_steps or step >= self.sampler.steps - 2:
                return Decision(StepKind.FULL, "warm-up" if step < self.schedule.min_full_steps else "end")
            return Decision(StepKind.FULL, "error", self._error)
        kind = self._run.pop(0)
        return Decision(kind, "error", self._error, last=StepKind.HALF not in self._run)

    def full(self, step: int, branches: Branches, discrepancy: Tensor) -> Branches | None:
        """Observes both quantities and plans the steps until the next full one."""
        self._gaps = step - self.conditional.last, step - self.difference.last
        return super().full(step, branches, discrepancy)

    def observe_errors(self, step: int, error_c: Tensor, error_d: Tensor) -> None:
        """Plans a run by the extrapolation errors of e_c and D, (batch, channels, height, width)."""
        room = self.sampler.steps - step - 3
        if step < self.schedule.min_full_steps - 1 or room <= 0:
            return
        import torch

        size_c, size_d = torch.stack([_size(error_c), _size(error_d)]).tolist()  # the step's only device synchronisation
        unit = self.sampler.steps * self.sampler.gains[step]
        rate_c = size_c * unit / self._gaps[0]
        rate_d = size_d * unit * (self.sampler.guidance_scale - 1) / self._gaps[1]
        self._run = self._cheapest_run(rate_c, rate_d, step, room)

    def _cheapest_run(self, rate_c: float, rate_d: float, step: int, room: int) -> list[StepKind]:
        half_steps = self.schedule.max_half_steps if self.sampler.half_steps else 0
        limits = {StepKind.HALF: half_steps, StepKind.SKIP: self.schedule.max_skip_steps}
        single = self.sampler.guidance_scale <= 1
        if single:  # one error alone: little further than it is known, nor to where predictions bend
            fewest = room % (max(limits.values()) + 1)  # a shorter run now would cost one full step more before the end
            room = min(self._gaps[1] + 1, max(-(-room // 2), fewest))
        gains = self.sampler.gains
        growth = [max(gains[step + 1 : step + 1 + n], default=0.0) / gains[step] for n in range(min(room, MAX_RUN) + 1)]
        chosen = cheapest_run(rate_c, rate_d, self.schedule.tolerance, limits, growth, stale=single)
        self._error = rate_c + rate_d
        return list(chosen)


def cheapest_run(
    rate_c: float,
    rate_d: float,
    tolerance: float,
    limits: dict[StepKind, int],
    growth: Sequence[float],
    stale: bool = False,
) -> tuple[StepKind, ...]:
    """The half and skip steps to take before the next full step.

    A run of n steps and the full step after it cost 1 + (half steps) / 2 full steps. Its error is the sum over its steps of the
    extrapolation errors, each proportional to the distance from the last computed value. Over a whole generation, cost plus
    squared errors / tolerance^2 is least where each run has the least such sum per step: the tolerance is the price of an error.

    Args:
        rate_c: error of e_c per step of distance.
        rate_d: error of D per step of distance, multiplied by guidance scale - 1.
        tolerance: error that is worth one full step.
        limits: largest number in a row of half and of skip steps.
        growth: for runs of 0, 1, ... steps, the largest gain of their steps relative to the present step's gain.
        stale: whether a half step is wrong by the skipped steps before it, as without guidance: both of its segments read
            activations that are as old.
    """
    best: tuple[StepKind, ...] = ()
    least = 1.0
    longest = min(len(growth) - 1, max(limits.values()))
    for length in range(1, longest + 1):
        for run, error_c, error_d in _runs(length, limits[StepKind.HALF], limits[StepKind.SKIP], stale):
            squares = ((rate_c * error_c) ** 2 + (rate_d * error_d) ** 2) * growth[length] ** 2
            price = (1 + run.count(StepKind.HALF) / 2 + squares / tolerance**2) / (length + 1)
            if price < least:
                best, least = run, price
    return best


@cache
def _runs(length: int, halves: int, skips: int, stale: bool) -> list[tuple[tuple[StepKind, ...], int, int]]:
    """All runs of a length with at most so many half and skip steps in a row, each with its ``_distances``."""
    every = product((StepKind.SKIP, StepKind.HALF), repeat=length)
    fit = [run for run in every if _longest(run, StepKind.HALF) <= halves and _longest(run, StepKind.SKIP) <= skips]
    return [(run, *_distances(run, stale)) for run in fit]


def _longest(run: Sequence[StepKind], kind: StepKind) -> int:
    return max((len(list(same)) for k, same in groupby(run) if k is kind), default=0)


def _distances(run: Sequence[StepKind], stale: bool) -> tuple[int, int]:
    """Sums over a run of the distances, in steps, over which e_c and D are extrapolated."""
    distance, error_c, error_d = 0, 0, 0
    for ahead, kind in enumerate(run, 1):
        half = kind is StepKind.HALF
        error_c += distance if half and stale else 0
        distance = 0 if half else distance + 1
        error_c, error_d = error_c + distance, error_d + ahead
    return error_c, error_d


def _size(error: Tensor) -> Tensor:
    """Root mean square over the whole batch, whose images share the decision."""
    return error.square().mean().sqrt()
