"""The error decides between full, half and skip steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby, product
from typing import ClassVar

from hybridiff.errors import require, require_whole
from hybridiff.schedule.base import Branches, Decision, Schedule, StepKind
from hybridiff.schedule.foretold import ForetoldPolicy
from hybridiff.schedule.sampler import Sampler
from hybridiff.schedule.tensor import Tensor

LONGEST_RUN = 8  # every run up to the longest is priced


@dataclass(frozen=True)
class Adaptive(Schedule):
    """Skips steps whose outcome can be foretold, as a solver of differential equations chooses its step size.

    At each full step the predictions that would have been made of e_c and D are compared with the true ones, in units of what
    they do to the latents. From these errors follows what is foretold next: see ``cheapest_run``.

    Args:
        tolerance: The displacement of the latents, relative to their size and as if made all along the sampling, that is worth
            a full step. Half of it gives better images, twice of it faster ones.
        max_half_steps: Half steps in a row, 8 at most.
        max_skip_steps: Skip steps in a row, 8 at most.
        min_full_steps: Full steps at the start; two at the end are full as well.
    """

    tolerance: float = 0.6
    max_half_steps: int = 4
    max_skip_steps: int = 4
    min_full_steps: int = 5

    name: ClassVar[str] = "adaptive"

    def __post_init__(self) -> None:
        require(self.tolerance > 0, "tolerance", self.tolerance, "more than 0")
        for name in ("max_half_steps", "max_skip_steps", "min_full_steps"):
            require_whole(name, getattr(self, name))
        for name in ("max_half_steps", "max_skip_steps"):
            require(0 <= getattr(self, name) <= LONGEST_RUN, name, getattr(self, name), f"0 to {LONGEST_RUN}")
        require(self.min_full_steps >= 2, "min_full_steps", self.min_full_steps, "2 or more")

    @property
    def kinds(self) -> frozenset[StepKind]:
        """Without half steps, nothing needs to be cut."""
        return frozenset({StepKind.FULL, StepKind.SKIP} | ({StepKind.HALF} if self.max_half_steps else set()))

    def check(self, sampler: Sampler) -> None:
        """Fits all: where there are few steps, all are full."""

    def begin(self, sampler: Sampler) -> AdaptivePolicy:
        """A fresh policy."""
        return AdaptivePolicy(self, sampler)


class AdaptivePolicy(ForetoldPolicy):
    """The decisions of one generation."""

    def __init__(self, schedule: Adaptive, sampler: Sampler) -> None:
        super().__init__(sampler)
        self.schedule = schedule
        self._run: list[StepKind] = []  # planned before the next full step
        self._gaps = (1, 1)  # steps since e_c and D were last computed
        self._error: float | None = None

    def plan(self, step: int) -> Decision:
        """Full, unless the last full step left a run of others to do."""
        if not self._run:
            if step < self.schedule.min_full_steps or step >= self.sampler.steps - 2:
                return Decision(StepKind.FULL, "warm-up" if step < self.schedule.min_full_steps else "end")
            return Decision(StepKind.FULL, "error", self._error)
        kind = self._run.pop(0)
        return Decision(kind, "error", self._error, last=StepKind.HALF not in self._run)

    def full(self, step: int, branches: Branches, discrepancy: Tensor) -> Branches | None:
        """Takes in both, and plans the steps until the next full one."""
        self._gaps = step - self.conditional.last, step - self.difference.last
        return super().full(step, branches, discrepancy)

    def learn(self, step: int, error_c: Tensor, error_d: Tensor) -> None:
        """Plans a run by how wrong both would have been foretold."""
        room = self.sampler.steps - step - 3
        if step < self.schedule.min_full_steps - 1 or room <= 0:
            return
        import torch

        size_c, size_d = torch.stack([_size(error_c), _size(error_d)]).tolist()  # the step's one wait for the device
        unit = self.sampler.steps * self.sampler.gains[step]
        rate_c = size_c * unit / self._gaps[0]
        rate_d = size_d * unit * (self.sampler.guidance_scale - 1) / self._gaps[1]
        self._run = self._cheapest_run(rate_c, rate_d, step, room)

    def _cheapest_run(self, rate_c: float, rate_d: float, step: int, room: int) -> list[StepKind]:
        limits = {StepKind.HALF: self.schedule.max_half_steps, StepKind.SKIP: self.schedule.max_skip_steps}
        gains = self.sampler.gains
        growth = [max(gains[step + 1 : step + 1 + n], default=0.0) / gains[step] for n in range(room + 1)]
        chosen = cheapest_run(rate_c, rate_d, self.schedule.tolerance, limits, growth)
        self._error = rate_c + rate_d
        return list(chosen)


def cheapest_run(
    rate_c: float, rate_d: float, tolerance: float, limits: dict[StepKind, int], growth: Sequence[float]
) -> tuple[StepKind, ...]:
    """The steps to foretell before the next full one.

    A run of n steps and the full step after it cost 1 + (half steps) / 2 full steps, and an error: that of a quantity foretold
    grows with the distance from its last computed value, and adds up over the run. Over a whole generation, the least cost for a
    sum of squared errors is had where each run has the least (cost + error^2 / tolerance^2) per step: the tolerance is the price.

    Args:
        rate_c: Error of e_c when foretold one step ahead; ``rate_d`` of D, times what guidance makes of it.
        tolerance: The error that is worth one full step.
        limits: Largest number in a row of each kind.
        growth: By how much steps move the latents more than the present one does, for runs of 0, 1, ... steps.
    """
    best: tuple[StepKind, ...] = ()
    least = 1.0
    longest = min(len(growth) - 1, max(limits.values()))
    for length in range(1, longest + 1):
        for run, error_c, error_d in _runs(length, limits[StepKind.HALF], limits[StepKind.SKIP]):
            squares = ((rate_c * error_c) ** 2 + (rate_d * error_d) ** 2) * growth[length] ** 2
            price = (1 + run.count(StepKind.HALF) / 2 + squares / tolerance**2) / (length + 1)
            if price < least:
                best, least = run, price
    return best


@cache
def _runs(length: int, halves: int, skips: int) -> list[tuple[tuple[StepKind, ...], int, int]]:
    """All runs of a length with at most so many half and skip steps in a row, each with its two sums of distances."""
    every = product((StepKind.SKIP, StepKind.HALF), repeat=length)
    fit = [run for run in every if _longest(run, StepKind.HALF) <= halves and _longest(run, StepKind.SKIP) <= skips]
    return [(run, *_errors(run)) for run in fit]


def _longest(run: Sequence[StepKind], kind: StepKind) -> int:
    return max((len(list(same)) for k, same in groupby(run) if k is kind), default=0)


def _errors(run: Sequence[StepKind]) -> tuple[int, int]:
    """Sums, over a run, of the distances at which e_c and D are foretold."""
    distance, error_c, error_d = 0, 0, 0
    for ahead, kind in enumerate(run, 1):
        distance = 0 if kind is StepKind.HALF else distance + 1
        error_c, error_d = error_c + distance, error_d + ahead
    return error_c, error_d


def _size(error: Tensor) -> Tensor:
    """Root of the mean square, over all images of the batch: all of them share the decision."""
    return error.square().mean().sqrt()
