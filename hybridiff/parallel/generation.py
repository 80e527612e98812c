"""The state of one run of a pipeline."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridiff.parallel.call import DenoiserCall
from hybridiff.schedule import Sampler, StepPolicy, Trace


class Style(Enum):
    """How a pipeline calls its denoiser in a step.

    DOUBLED: once, on both guidance branches. BRANCHES: once per branch. SINGLE: once, on one prediction. LEARNING: not known yet.
    """

    DOUBLED = "doubled"
    BRANCHES = "branches"
    SINGLE = "single"
    LEARNING = "learning"


@dataclass(frozen=True)
class Observed:
    """One call of a step that is learned from.

    Args:
        name: name of the branch, where the pipeline announces it by ``cache_context``.
        call: the call.
        prediction: its prediction, (rows, ...).
        objects: state of its arguments that are objects, at the time of the call, by identity.
        network: state of the network at the time of the call.
    """

    name: str | None
    call: DenoiserCall
    prediction: Tensor
    objects: dict[int, Any]
    network: Any


@dataclass
class Phase:
    """Steps of a run that call the denoiser alike; a run has a second one where guidance begins or ends in it.

    Args:
        style: how the denoiser is called.
        first: first step; the policy counts from it.
        rows: rows of a call.
        policy: the schedule's policy; None while the style is learned.
        computed: calls of the step that is learned from.
        calls: calls of a step of which all are computed, as they are more than two, or cannot be made ahead; else 0.
        regular: whether the calls of that step had the same latents, and changed nothing that they were given.
        present: first call of the present step.
        marker: the sampler's step at that call.
        further: the other calls of a step, whose prompts are the same in all steps.
        unconditional_first: whether the first call is the unconditional branch.
        conditional_first: whether a doubled batch is [conditional, unconditional].
        pending: predictions for the other calls of the present step, by their position in ``further``.
        unforeseen: whether a call came that was not as in the step that was learned from.
    """

    style: Style
    first: int
    rows: int
    policy: StepPolicy | None = None
    computed: list[Observed] = field(default_factory=list)
    calls: int = 0
    regular: bool = True
    present: DenoiserCall | None = None
    marker: Any = None
    further: tuple[DenoiserCall, ...] = ()
    unconditional_first: bool = False
    conditional_first: bool = False
    pending: dict[int, Tensor] = field(default_factory=dict)
    unforeseen: bool = False


class Generation:
    """One run of a pipeline.

    Args:
        timesteps: the scheduler's timesteps, (steps,).
        first: index of the timestep that the run begins with.
        calls: number of steps that the run makes.
        trace: record of its steps.

    Attributes:
        sampler: sampler of the whole run; set at the first call.
        phase: present phase; set at the first call.
        timestep: timestep of the last step, as the pipeline passed it.
        output: output of the last computed call.
        dtype: data type of the predictions.
        unused_channels: channels of the predictions that the pipeline drops.
        agreed: text of all that must be equal on the ranks of a group besides the denoiser's inputs.
    """

    def __init__(self, timesteps: Tensor, first: int, calls: int, trace: Trace) -> None:
        self.timesteps = timesteps
        self.first = first
        self.calls = calls
        self.trace = trace
        self.sampler: Sampler | None = None
        self.phase: Phase | None = None
        self.timestep: Any = None
        self.output: Any = None
        self.dtype = torch.float32
        self.unused_channels = 0
        self.agreed = ""

    @property
    def step(self) -> int:
        """The coming step, counted from 0."""
        return len(self.trace.decisions)

    @property
    def ended(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.calls

    def belongs_to(self, pipeline: Any) -> bool:
        """Whether this is the pipeline's current run; each run sets a new timesteps tensor."""
        return self.timesteps is pipeline.scheduler.timesteps

    def padded(self, prediction: Tensor) -> Tensor:
        """A prediction in the network's data type, with 0 in the channels that the pipeline drops."""
        prediction = prediction.to(self.dtype)
        return F.pad(prediction, (0, 0, 0, 0, 0, self.unused_channels)) if self.unused_channels else prediction


def begin_generation(pipeline: Any, timestep: Any, schedule: str) -> Generation:
    """The generation of a pipeline's first denoiser call.

    Args:
        pipeline: pipeline whose scheduler's timesteps are set.
        timestep: timestep of the call.
        schedule: name of the schedule, for the trace.
    """
    timesteps = pipeline.scheduler.timesteps
    first = first_timestep(pipeline.scheduler, timestep)
    calls = getattr(pipeline, "num_timesteps", None)  # fewer where a pipeline runs over a part of the timesteps
    if calls is None:
        return Generation(timesteps, first, len(timesteps) - first, Trace(schedule))
    return Generation(timesteps, min(first, max(len(timesteps) - calls, 0)), min(calls, len(timesteps)), Trace(schedule))


def first_timestep(scheduler: Any, timestep: Any) -> int:
    """The index of the timestep of a run's first call; 0 where the pipeline passes timesteps in another unit."""
    begin = getattr(scheduler, "begin_index", None)
    if begin is not None:
        return int(begin)
    value = timestep.flatten()[0] if isinstance(timestep, Tensor) else timestep
    indices = (scheduler.timesteps == value).nonzero().flatten().tolist()
    return int(indices[0]) if indices else 0
