"""AsyncDiff: after the warm-up every step is pipelined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hybridiff.errors import require, require_whole
from hybridiff.schedule.base import Branches, Decision, Schedule, StepKind
from hybridiff.schedule.sampler import Sampler
from hybridiff.schedule.tensor import Tensor


@dataclass(frozen=True)
class Async(Schedule):
    """Every step after the warm-up is pipelined, with both branches kept (Chen et al., AsyncDiff, arXiv 2406.06911).

    Args:
        warm_up: Full steps at the start.
        stride: Every so many steps one is pipelined; those between take its prediction again. AsyncDiff gives them a rank of
            their own, which a group does not have.
        time_shift: Whether the segments are told the timestep of the step before, which the outputs they read belong to.
    """

    warm_up: int = 9
    stride: int = 1
    time_shift: bool = False

    name: ClassVar[str] = "async"
    kinds: ClassVar[frozenset[StepKind]] = frozenset({StepKind.FULL, StepKind.PIPELINED, StepKind.SKIP})

    def __post_init__(self) -> None:
        require_whole("warm_up", self.warm_up)
        require_whole("stride", self.stride)
        require(isinstance(self.time_shift, bool), "time_shift", self.time_shift, "true or false")
        require(self.warm_up >= 1, "warm_up", self.warm_up, "1 full step or more")
        require(self.stride >= 1, "stride", self.stride, "1 or more")

    def check(self, sampler: Sampler) -> None:
        """Refuses a warm-up longer than the sampling.

        Raises:
            UsageError: naming warm_up and the number of steps.
        """
        require(self.warm_up <= sampler.steps, "warm_up", self.warm_up, f"at most the number of steps, {sampler.steps}")

    def begin(self, sampler: Sampler) -> AsyncPolicy:
        """A fresh policy. Raises as ``check`` does."""
        self.check(sampler)
        return AsyncPolicy(self, sampler.steps)


class AsyncPolicy:
    """The decisions of one generation."""

    def __init__(self, schedule: Async, steps: int) -> None:
        self.schedule = schedule
        self.final = steps - 1
        self.last: Branches | None = None

    def plan(self, step: int) -> Decision:
        """Full, then pipelined."""
        after = step - self.schedule.warm_up
        if after < 0:
            return Decision(StepKind.FULL, "warm-up")
        if (after + 1) % self.schedule.stride:
            return Decision(StepKind.SKIP, "stride")
        return Decision(StepKind.PIPELINED, "pipelined", last=step == self.final, shift_time=self.schedule.time_shift)

    def full(self, step: int, branches: Branches, discrepancy: Tensor) -> None:
        """Remembers the prediction."""
        self.last = branches

    def half(self, step: int, conditional: Tensor) -> Branches:
        """Never asked for."""
        raise AssertionError("async has no half steps")

    def skip(self, step: int) -> Branches:
        """The last prediction."""
        assert self.last is not None
        return self.last
