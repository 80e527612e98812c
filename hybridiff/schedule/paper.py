"""The paper's schedule."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from hybridiff.errors import UsageError, require, require_choice, require_whole
from hybridiff.schedule.base import Branches, Decision, Schedule, StepKind
from hybridiff.schedule.sampler import Sampler
from hybridiff.schedule.tensor import Tensor
from hybridiff.schedule.window import GUIDANCES, HALF_OR_FULL, WindowPolicy


@dataclass(frozen=True)
class Paper(Schedule):
    """Warm-up, one window of k half steps, fully-connecting (arXiv 2602.21760, section 3.4, algorithm 1, steps counted forward).

    The window opens at the step after the first i at which the slope of the discrepancy, (M_{i-L+1} - M_i) / L, is in [0, g),
    and at step ``tau_cap`` at the latest. What is left out is the paper's value for the denoiser and scheduler: ``preset``.

    Args:
        slope_window: L, in steps.
        slope_threshold: g, per step.
        tau_cap: The last step at which the window may open.
        k: Half steps in the window.
        guidance: In the window: merged (the paper's), carry or extrapolate.
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
        threshold = self.slope_threshold
        require(threshold is None or 0 < threshold < float("inf"), "slope_threshold", threshold, "more than 0")
        require(self.tau_cap is None or self.tau_cap >= 1, "tau_cap", self.tau_cap, "step 1 or later")
        require(self.k >= 0, "k", self.k, "0 half steps or more")
        require_choice("guidance", self.guidance, GUIDANCES)

    def preset(self, sampler: Sampler) -> Paper:
        """With the paper's values (its table of hyperparameters) in place of what is not set."""
        flow = "FlowMatch" in sampler.scheduler or "Transformer" in sampler.denoiser
        window, threshold, cap = (15, 0.1e-3, 40) if flow else (12, 0.4e-3, 15)
        return replace(
            self,
            slope_window=window if self.slope_window is None else self.slope_window,
            slope_threshold=threshold if self.slope_threshold is None else self.slope_threshold,
            tau_cap=cap if self.tau_cap is None else self.tau_cap,
        )

    def check(self, sampler: Sampler) -> None:
        """Refuses a window that may not fit the steps.

        Raises:
            UsageError: naming tau_cap, k and the number of steps.
        """
        cap = self.preset(sampler).tau_cap
        assert cap is not None
        if cap + self.k > sampler.steps:
            raise UsageError(
                f"tau_cap is {cap} and k is {self.k}; allowed: a sum of at most {sampler.steps}, the number of steps, "
                "or the window would not fit"
            )

    def begin(self, sampler: Sampler) -> PaperPolicy:
        """A fresh policy. Raises as ``check`` does."""
        self.check(sampler)
        return PaperPolicy(self.preset(sampler), sampler)


class PaperPolicy(WindowPolicy):
    """The decisions of one generation."""

    def __init__(self, schedule: Paper, sampler: Sampler) -> None:
        super().__init__(schedule.guidance, sampler)
        assert schedule.slope_window and schedule.slope_threshold is not None and schedule.tau_cap
        self.length, self.threshold, self.cap, self.k = (
            schedule.slope_window,
            schedule.slope_threshold,
            schedule.tau_cap,
            schedule.k,
        )
        self.curve: list[Tensor] = []
        self.tau1: int | None = None
        self.slope: float | None = None
        self.reason = "warm-up"

    def plan(self, step: int) -> Decision:
        """Full, half in the window, full again."""
        if self.tau1 is None and step >= self.cap:
            self.tau1, self.reason = step, "cap"
        if self.tau1 is None:
            return Decision(StepKind.FULL, "warm-up", self.slope)
        if step < self.tau1 + self.k:
            return Decision(StepKind.HALF, self.reason, self.slope, last=step == self.tau1 + self.k - 1)
        return Decision(StepKind.FULL, "fully-connecting")

    def full(self, step: int, branches: Branches, discrepancy: Tensor) -> None:
        """Follows the slope until the window opens."""
        super().full(step, branches, discrepancy)
        if self.tau1 is not None:
            return
        self.curve.append(discrepancy.mean())
        if len(self.curve) > self.length:
            self.slope = ((self.curve[-self.length] - self.curve[-1]) / self.length).item()
            if 0 <= self.slope < self.threshold and step + 1 <= self.cap:
                self.tau1, self.reason = step + 1, "slope"
