"""Kinds of steps, and what a schedule is.

A schedule is asked before each step and told after it; it knows no ranks. Every rank of a group holds the same numbers after
an exchange, so every rank's policy decides alike and no decision is ever sent.
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

    FULL: both guidance branches by the whole network. HALF: the conditional branch alone, the guidance difference predicted.
    SKIP: nothing, both predicted. PIPELINED: both branches, by segments of the network that read each other's last outputs.
    """

    FULL = "full"
    HALF = "half"
    SKIP = "skip"
    PIPELINED = "pipelined"


@dataclass(frozen=True)
class Decision:
    """What a schedule says of the coming step.

    Args:
        kind: Of the step.
        reason: For people and for the corpus, such as "warm-up", "slope" or "cap".
        measure: The number that decided, if one did: the slope of the discrepancy, or the estimated error.
        last: No other half or pipelined step comes before the next full one, so nothing need be kept for it.
        shift_time: Segments are told the timestep of the step before (AsyncDiff's time shift).
    """

    kind: StepKind
    reason: str
    measure: float | None = None
    last: bool = False
    shift_time: bool = False


@dataclass(frozen=True)
class Branches:
    """The conditional prediction e_c and the guidance difference D = e_c - e_u, both (batch, channels, height, width)."""

    conditional: Tensor
    difference: Tensor

    def doubled(self) -> Tensor:
        """[e_u, e_c] as the stock pipeline's formula wants it: (2 batch, channels, height, width)."""
        import torch

        return torch.cat([self.conditional - self.difference, self.conditional])


class StepPolicy(Protocol):
    """The decisions of one generation. Steps are counted from 0 in sampling order; each is planned once, then told of."""

    def plan(self, step: int) -> Decision:
        """What the coming step computes."""
        ...

    def full(self, step: int, branches: Branches, discrepancy: Tensor) -> Branches | None:
        """Takes in a full or pipelined step and its discrepancy (batch,): what the sampler gets instead; None for as computed."""
        ...

    def half(self, step: int, conditional: Tensor) -> Branches:
        """Takes in a half step's e_c: what the sampler gets."""
        ...

    def skip(self, step: int) -> Branches:
        """What the sampler gets at a step where nothing was computed."""
        ...


class Schedule(ABC):
    """A choice of steps. Subclasses are frozen dataclasses whose fields are the schedule's options; ``begin`` makes the state.

    A schedule of one's own subclasses this and is named by its class path: ``parallel.schedule: {class_path: mine.MySchedule}``.

    Attributes:
        name: In traces and in the corpus, such as "adaptive"; by default the class's name.
        kinds: The kinds of steps that its policies may ask for.
    """

    name: ClassVar[str]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__

    @property
    @abstractmethod
    def kinds(self) -> frozenset[StepKind]:
        """The kinds of steps that its policies may ask for."""

    def options(self, defaults: bool = True) -> dict[str, Any]:
        """Its options by name, or without ``defaults`` those that differ from them."""
        found = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, (value, default) in found.items() if defaults or value != default}

    def check(self, sampler: Sampler) -> None:  # noqa: B027
        """Refuses a sampler that the schedule does not fit; by default none.

        Raises:
            UsageError: naming what was given and what is allowed.
        """

    @abstractmethod
    def begin(self, sampler: Sampler) -> StepPolicy:
        """A fresh policy for one generation. Raises as ``check`` does."""
