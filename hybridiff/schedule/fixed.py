"""Schedules without a guidance window: every step full, and AsyncDiff's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hybridiff.errors import require, require_whole
from hybridiff.schedule.base import Branches, Decision, Schedule, StepKind, StepPolicy
from hybridiff.schedule.sampler import Sampler
from hybridiff.schedule.tensor import Tensor


@dataclass(frozen=True)
class Full(Schedule):
    """Every step full: condition-based partitioning alone (arXiv 2602.21760, section 3.2)."""

    name: ClassVar[str] = "full"
    kinds: ClassVar[frozenset[StepKind]] = frozenset({StepKind.FULL})

    def begin(self, sampler: Sampler) -> FullPolicy:
        """A policy without state."""
        return FullPolicy()


class FullPolicy(StepPolicy):
    """Plans full steps only."""

    def plan(self, step: int) -> Decision:
        """Always a full step."""
        return Decision(StepKind.FULL, "full")

    def full(self, step: int, branches: Branches, discrepancy: Tensor) -> None:
        """Nothing depends on the predictions."""


@dataclass(frozen=True)
class Async(Schedule):
    """Pipelined steps of both branches after a warm-up (Chen et al., AsyncDiff, arXiv 2406.06911).

    Args:
        warm_up: full steps at the start.
        stride: period of the pipelined steps; the steps between them repeat the last prediction. (AsyncDiff computes those on
            a further rank, which a group does not have.)
        time_shift: whether segments get the timestep of the previous step, to which the outputs that they read belong.
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
        """Checks that the warm-up is no longer than the sampling.

        Raises:
            UsageError: the warm-up and the number of steps.
        """
        require(self.warm_up <= sampler.steps, "warm_up", self.warm_up, f"at most the number of steps, {sampler.steps}")

    def begin(self, sampler: Sampler) -> AsyncPolicy:
        """A new policy. Raises as ``check`` does."""
        self.check(sampler)
        return AsyncPolicy(self, sampler.steps)


class AsyncPolicy(StepPolicy):
    """Plans full steps, then pipelined ones.

    Args:
        schedule: options.
        steps: number of steps of the generation.
    """

    def __init__(self, schedule: Async, steps: int) -> None:
        self.schedule = schedule
        self.final = steps - 1
        self.last: Branches | None = None

    def plan(self, step: int) -> Decision:
        """Full in the warm-up, then pipelined at every ``stride``-th step."""
        after = step - self.schedule.warm_up
        if after < 0:
            return Decision(StepKind.FULL, "warm-up")
        if (after + 1) % self.schedule.stride:
            return Decision(StepKind.SKIP, "stride")
        return Decision(StepKind.PIPELINED, "pipelined", last=step == self.final, shift_time=self.schedule.time_shift)

    def full(self, step: int, branches: Branches, discrepancy: Tensor) -> None:
        """Keeps the prediction for the skip steps."""
        self.last = branches

    def skip(self, step: int) -> Branches:
        """The last prediction."""
        assert self.last is not None
        return self.last
