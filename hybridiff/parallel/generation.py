"""The state of one run of a pipeline, and how its beginning is told."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridiff.schedule import Branches, StepPolicy, Trace


class Generation:
    """The state of one run of the pipeline.

    Args:
        timesteps: The scheduler's.
        first: The one that it begins with.
        calls: Of the denoiser, that it will make.
        trace: Of its steps so far.

    Attributes:
        policy: Made in the first step with guidance.
        timestep: Of the denoiser call before, as the pipeline passed it.
        output: Of the denoiser, when it was last called.
        dtype: Of the denoiser's predictions.
        unread: Channels of the predictions that the pipeline drops.
        agreed: What the ranks of a group must have in common, besides the denoiser's inputs, to decide alike.
    """

    def __init__(self, timesteps: Tensor, first: int, calls: int, trace: Trace) -> None:
        self.timesteps = timesteps
        self.first = first
        self.calls = calls
        self.trace = trace
        self.policy: StepPolicy | None = None
        self.timestep: Any = None
        self.output: Any = None
        self.dtype = torch.float32
        self.unread = 0
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
        """Whether this is the run that a pipeline is in: each sets its timesteps anew, which tells runs apart without a word."""
        return self.timesteps is pipeline.scheduler.timesteps

    def sent(self, branches: Branches) -> Tensor:
        """What stands for the denoiser's doubled prediction, (2 batch, channels, height, width); unread channels are 0."""
        return F.pad(branches.doubled().to(self.dtype), (0, 0, 0, 0, 0, self.unread))


def begin_generation(pipeline: Any, timestep: Any, schedule: str) -> Generation:
    """The generation of which a pipeline makes the first denoiser call.

    Args:
        pipeline: Its timesteps are set.
        timestep: As it was passed to the denoiser.
        schedule: Name of the schedule, for the trace.
    """
    timesteps = pipeline.scheduler.timesteps
    first = first_timestep(pipeline.scheduler, timestep)
    left = len(timesteps) - first
    calls = getattr(pipeline, "num_timesteps", None)  # where a pipeline runs over a part of them
    return Generation(timesteps, first, left if calls is None else min(calls, left), Trace(schedule))


def first_timestep(scheduler: Any, timestep: Any) -> int:
    """Which of the scheduler's timesteps a run begins with, by its first call; 0 where the pipeline passes another unit."""
    begin = getattr(scheduler, "begin_index", None)
    if begin is not None:
        return int(begin)
    value = timestep.flatten()[0] if isinstance(timestep, Tensor) else timestep
    places = (scheduler.timesteps == value).nonzero().flatten().tolist()
    return int(places[0]) if places else 0
