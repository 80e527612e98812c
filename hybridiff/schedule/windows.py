"""Schedules with windows of half steps: the paper's, and one that renews the guidance difference within the window."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from hybridiff.errors import UsageError, require, require_choice, require_positive, require_whole
from hybridiff.schedule.base import Branches, Decision, Schedule, StepKind, StepPolicy
from hybridiff.schedule.extrapolate import Extrapolation
from hybridiff.schedule.sampler import Sampler
from hybridiff.schedule.tensor import Tensor

GUIDANCES = ("merged", "carry", "extrapolate")
_DAMPING = {"carry": 0.0, "extrapolate": 1.0}
HALF_OR_FULL = frozenset({StepKind.FULL, StepKind.HALF})


class WindowPolicy(StepPolicy):
    """Base of policies with half steps; provides their guidance difference D.

    Args:
        guidance: ``merged``: D = 0, so e_c stands for both branches (arXiv 2602.21760, section 3.4); ``carry``: the D of the last
            full step; ``extrapolate``: the line through the D of the last two full steps.
        sampler: sampler of the generation.
    """

    def __init__(self, guidance: str, sampler: Sampler) -> None:
        merged = guidance == "merged"
        self.difference = None if merged else Extrapolation(sampler, damping=_DAMPING[guidance], compensate=False)

    def full(self, step: int, branches: Branches, discrepancy: Tensor) -> None:
        """Observes D."""
        if self.difference is not None:
            self.difference.observe(step, branches.difference)

    def half(self, step: int, conditional: Tensor) -> Branches:
        """The computed e_c, with D as ``guidance`` says."""
        import torch

        difference = torch.zeros_like(conditional) if self.difference is None else self.difference.extrapolate(step)
        return Branches(conditional, difference)


@dataclass(frozen=True)
class Paper(Schedule):
    """Warm-up, one window of k half steps, fully-connecting (arXiv 2602.21760, section 3.4, algorithm 1, steps counted forward).

    The window opens at the step after the first i with 0 <= (M_{i-L+1} - M_i) / L < g, where M_i is the discrepancy at step i,
    and at step ``tau_cap`` at the latest. Options left out get the paper's values for the denoiser and scheduler: see ``preset``.

    Args:
        slope_window: L, number of steps over which the slope is measured.
        slope_threshold: g, slope per step below which the window opens.
        tau_cap: last step at which the window may open.
        k: half steps in the window.
        guidance: guidance difference in the window: merged (as in the paper), carry or extrapolate.
    """

    slope_window: int | None = None
    slope_threshold: float | None = None
    tau_cap: int | None = None
    k: int = 5
    guidance: str = "merged"

    name: ClassVar[str] = "paper"
    kinds: ClassVar[frozenset[StepKind]] = HALF_OR_FULL

    def __post_init__(self) -> None:
        for name in ("slope_window", "tau_cap", "k"):
            if getattr(self, name) is not None or name == "k":
                require_whole(name, getattr(self, name))
        require(self.slope_window is None or self.slope_window >= 2, "slope_window", self.slope_window, "2 steps or more")
        if self.slope_threshold is not None:
            require_positive("slope_threshold", self.slope_threshold)
        require(self.tau_cap is None or self.tau_cap >= 1, "tau_cap", self.tau_cap, "step 1 or later")
        require(self.k >= 0, "k", self.k, "0 half steps or more")
        require_choice("guidance", self.guidance, GUIDANCES)

    def preset(self, sampler: Sampler) -> Paper:
        """The schedule with the paper's hyperparameters (L, g, tau_cap) in place of None."""
        flow = "FlowMatch" in sampler.scheduler or "Transformer" in sampler.denoiser
        window, threshold, cap = (15, 0.1e-3, 40) if flow else (12, 0.4e-3, 15)
        return replace(
            self,
            slope_window=window if self.slope_window is None else self.slope_window,
            slope_threshold=threshold if self.slope_threshold is None else self.slope_threshold,
            tau_cap=cap if self.tau_cap is None else self.tau_cap,
        )

    def check(self, sampler: Sampler) -> None:
        """Checks that the latest possible window fits the steps.

        Raises:
            UsageError: tau_cap, k and the number of steps.
        """
        cap = self.preset(sampler).tau_cap
        assert cap is not None
        if cap + self.k > sampler.steps:
            raise UsageError(
                f"tau_cap is {cap} and k is {self.k}; allowed: a sum of at most {sampler.steps}, the number of steps, "
                "or the window would not fit"
            )

    def begin(self, sampler: Sampler) -> PaperPolicy:
        """A new policy. Raises as ``check`` does."""
        self.check(sampler)
        return PaperPolicy(self.preset(sampler), sampler)


class PaperPolicy(WindowPolicy):
    """Observes the slope of the discrepancy until the window opens at tau1; the window ends at tau2 = tau1 + k.

    Args:
        schedule: options, all of them set.
        sampler: sampler of the generation.
    """

    def __init__(self, schedule: Paper, sampler: Sampler) -> None:
        super().__init__(schedule.guidance, sampler)
        assert schedule.slope_window and schedule.slope_threshold is not None and schedule.tau_cap
        self.length, self.threshold = schedule.slope_window, schedule.slope_threshold
        self.cap, self.k = schedule.tau_cap, schedule.k
        self.curve: list[Tensor] = []
        self.tau1: int | None = None
        self.slope: float | None = None
        self.reason = "warm-up"

    def plan(self, step: int) -> Decision:
        """Full before the window, half in it, full after it."""
        if self.tau1 is None and step >= self.cap:
            self.tau1, self.reason = step, "cap"
        if self.tau1 is None:
            return Decision(StepKind.FULL, "warm-up", self.slope)
        if step < self.tau1 + self.k:
            return Decision(StepKind.HALF, self.reason, self.slope, last=step == self.tau1 + self.k - 1)
        return Decision(StepKind.FULL, "fully-connecting")

    def full(self, step: int, branches: Branches, discrepancy: Tensor) -> None:
        """Adds the batch's mean discrepancy to the curve, and opens the window where its slope is small enough."""
        super().full(step, branches, discrepancy)
        if self.tau1 is not None:
            return
        self.curve.append(discrepancy.mean())
        if len(self.curve) > self.length:
            self.slope = ((self.curve[-self.length] - self.curve[-1]) / self.length).item()
            if 0 <= self.slope < self.threshold and step + 1 <= self.cap:
                self.tau1, self.reason = step + 1, "slope"


@dataclass(frozen=True)
class Refresh(Schedule):
    """Half steps from ``first`` to ``last``, with a full step after every ``refresh_every`` of them.

    Args:
        first: first half step, 1 or later.
        last: last step that may be a half step; negative values count from the end.
        refresh_every: half steps between two full ones.
        guidance: guidance difference in half steps: merged, carry or extrapolate.
    """

    first: int = 8
    last: int = -3
    refresh_every: int = 1
    guidance: str = "extrapolate"

    name: ClassVar[str] = "refresh"
    kinds: ClassVar[frozenset[StepKind]] = HALF_OR_FULL

    def __post_init__(self) -> None:
        for name in ("first", "last", "refresh_every"):
            require_whole(name, getattr(self, name))
        require(self.first >= 1, "first", self.first, "step 1 or later")
        require(self.refresh_every >= 1, "refresh_every", self.refresh_every, "1 half step or more")
        require_choice("guidance", self.guidance, GUIDANCES)

    def final(self, sampler: Sampler) -> int:
        """The last step that may be a half step, counted from 0."""
        return self.last if self.last >= 0 else sampler.steps + self.last

    def check(self, sampler: Sampler) -> None:
        """Checks that the window fits the steps.

        Raises:
            UsageError: first, last and the number of steps.
        """
        if not self.first <= self.final(sampler) < sampler.steps:
            raise UsageError(
                f"first is {self.first} and last is {self.last}; allowed: first <= last < {sampler.steps}, the number of steps"
            )

    def begin(self, sampler: Sampler) -> RefreshPolicy:
        """A new policy. Raises as ``check`` does."""
        self.check(sampler)
        return RefreshPolicy(self, sampler)


class RefreshPolicy(WindowPolicy):
    """Plans by step number alone.

    Args:
        schedule: options.
        sampler: sampler of the generation.
    """

    def __init__(self, schedule: Refresh, sampler: Sampler) -> None:
        super().__init__(schedule.guidance, sampler)
        self.first, self.final, self.every = schedule.first, schedule.final(sampler), schedule.refresh_every

    def plan(self, step: int) -> Decision:
        """Full outside of the window and after every ``refresh_every`` half steps."""
        if not self.first <= step <= self.final:
            return Decision(StepKind.FULL, "outside")
        position = (step - self.first) % (self.every + 1)
        if position == self.every:
            return Decision(StepKind.FULL, "refresh")
        return Decision(StepKind.HALF, "window", last=position == self.every - 1 or step == self.final)
