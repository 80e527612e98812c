"""Kinds of steps, and the interface between a schedule and the engine.

The engine asks a schedule's policy before each step (``plan``) and reports the computed predictions after it (``full``,
``half``). A policy knows no ranks: all ranks of a group hold the same predictions after an exchange, so their policies decide
alike and no decision is ever sent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, ClassVar, Protocol

from hybridiff.schedule.sampler import Sampler
from hybridiff.schedule.tensor import Tensor


class StepKind(Enum):
    """What one denoising step computes.

    FULL: both guidance branches by the whole network. HALF: the conditional branch alone; the guidance difference is
        extrapolated.
    SKIP: nothing; both are extrapolated. PIPELINED: both branches, by network segments that read each other's previous outputs.
    """

    FULL = "full"
    HALF = "half"
    SKIP = "skip"
    PIPELINED = "pipelined"


@dataclass(frozen=True)
class Decision:
    """What a policy decided for one step.

    Args:
        kind: kind of the step.
        reason: short text for logs and the corpus, such as "warm-up", "slope" or "cap".
        measure: number that decided, if any: the slope of the discrepancy per step, or the estimated error.
        last: whether no other half or pipelined step comes before the next full one, so that no activations need to be kept.
        shift_time: whether segments get the timestep of the previous step (AsyncDiff's time shift).
    """

    kind: StepKind
    reason: str
    measure: float | None = None
    last: bool = False
    shift_time: bool = False


@dataclass(frozen=True)
class Branches:
    """The two guidance branches of a batch, as conditional prediction and difference.

    Args:
        conditional: e_c, (batch, channels, height, width).
        difference: D = e_c - e_u, of the same shape.
    """

    conditional: Tensor
    difference: Tensor

    def doubled(self) -> Tensor:
        """[e_u, e_c], (2 batch, channels, height, width): what a stock pipeline's guidance formula expects."""
        import torch

        return torch.cat([self.conditional - self.difference, self.conditional])


class StepPolicy(Protocol):
    """The state of one generation. Steps are counted from 0 in sampling order; ``plan`` is called once per step.

    Base class of policies that lack half or skip steps; others need not inherit.
    """

    def plan(self, step: int) -> Decision:
        """The kind of the coming step."""
        ...

    def full(self, step: int, branches: Branches, discrepancy: Tensor) -> Branches | None:
        """Observes a full or pipelined step.

        Args:
            step: number of the step.
            branches: computed predictions.
            discrepancy: rel-MAE of each image, (batch,).

        Returns:
            The predictions that the sampler gets instead; None for the computed ones.
        """
        ...

    def half(self, step: int, conditional: Tensor) -> Branches:
        """Observes the e_c of a half step; returns the predictions that the sampler gets."""
        raise AssertionError(f"{type(self).__name__} has no half steps")

    def skip(self, step: int) -> Branches:
        """The predictions that the sampler gets at a step that computes nothing."""
        raise AssertionError(f"{type(self).__name__} has no skip steps")


class Schedule(ABC):
    """A rule for the kinds of steps; base class of all schedules, built-in or your own.

    Subclasses are frozen dataclasses whose fields are the options; they hold no state. Your own is selected by its class path:
    ``parallel.schedule: {class_path: mine.MySchedule, init_args: {...}}``.

    Attributes:
        name: name in traces and in the corpus; the class name by default.
        kinds: kinds of steps that its policies may plan.
    """

    name: ClassVar[str]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__

    @property
    @abstractmethod
    def kinds(self) -> frozenset[StepKind]:
        """Kinds of steps that its policies may plan."""

    @abstractmethod
    def begin(self, sampler: Sampler) -> StepPolicy:
        """A new policy for one generation. Raises as ``check`` does."""

    def check(self, sampler: Sampler) -> None:  # noqa: B027
        """Checks that the schedule fits a sampler; by default every one is accepted.

        Raises:
            UsageError: what was given and what is allowed.
        """

    def without_half_steps(self) -> Schedule | None:
        """The same schedule without half and pipelined steps, for networks that cannot be cut; None if it cannot do without."""
        return None

    def options(self, defaults: bool = True) -> dict[str, Any]:
        """Values of all options by name; without ``defaults``, only those that differ from the default."""
        found = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, (value, default) in found.items() if defaults or value != default}


def relative_mae(conditional: Tensor, unconditional: Tensor) -> Tensor:
    """Denoising discrepancy, rel-MAE = mean|e_c - e_u| / mean|e_u| of each image (arXiv 2602.21760, eq. 6), in single precision.

    Args:
        conditional: e_c, (batch, channels, height, width).
        unconditional: e_u, of the same shape.

    Returns:
        (batch,) discrepancies; infinite where e_u is zero everywhere, NaN where e_c is zero there too.
    """
    conditional, unconditional = conditional.float(), unconditional.float()
    return (conditional - unconditional).abs().flatten(1).mean(1) / unconditional.abs().flatten(1).mean(1)
