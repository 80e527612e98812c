"""The hook that takes over a stock pipeline's denoiser call."""

from typing import Any

import torch
from diffusers.hooks import ModelHook
from torch import Tensor

from hybridiff.config import UsageError
from hybridiff.parallel.call import DenoiserCall, with_prediction
from hybridiff.parallel.placement import Placement
from hybridiff.schedule import Schedule, StepKind, StepPolicy, Trace, relative_mae

HOOK_NAME = "hybridiff"


class Generation:
    """The state of one run of the pipeline: its policy, its trace, and which timesteps it runs over."""

    def __init__(self, schedule: Schedule, timesteps: Tensor, steps: int) -> None:
        self.timesteps = timesteps
        self.policy: StepPolicy = schedule.begin(steps)
        self.trace = Trace(schedule.name)

    @property
    def step(self) -> int:
        """The coming step, counted from 0."""
        return len(self.trace.kinds)


class DenoiserHook(ModelHook):
    """Asks the schedule before each denoiser call, executes the step on the group, and tells the schedule what it showed.

    Args:
        pipeline: Whose denoiser it is; asked whether guidance is on and over which timesteps it runs.
    """

    def __init__(self, pipeline: Any, schedule: Schedule, placement: Placement) -> None:
        super().__init__()
        self.pipeline = pipeline
        self.schedule = schedule
        self.placement = placement
        self.generation: Generation | None = None

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Stands in for the denoiser's forward: same arguments, same kind of output, on every rank of the group."""
        call = DenoiserCall(self.fn_ref.original_forward, args, kwargs)
        if kwargs.get("skip_layers") is not None:
            raise UsageError("skip_guidance_layers calls the denoiser a second time in a step; allowed: None")
        generation = self._generation()
        first = generation.step == 0
        guided = bool(self.pipeline.do_classifier_free_guidance)
        if guided and first and not call.doubled():
            name = type(self.pipeline).__name__
            raise UsageError(f"{name} calls its denoiser once per branch; allowed: pipelines that double the batch for guidance")
        kind = generation.policy.plan(generation.step) if guided else StepKind.FULL
        assert kind is StepKind.FULL, f"no placement executes {kind}"
        prediction, output = (self.placement.full_step if guided else self.placement.unguided_step)(call, first)
        if guided:
            unconditional, conditional = prediction.chunk(2)
            discrepancy = relative_mae(conditional, unconditional)
            generation.policy.observe(generation.step, discrepancy, conditional - unconditional)
            generation.trace.discrepancies.append(discrepancy)
        generation.trace.kinds.append(kind)
        return with_prediction(output, prediction)

    def _generation(self) -> Generation:
        """The running generation. Each run of a pipeline sets its timesteps anew, which tells a new generation without a word."""
        timesteps = self.pipeline.scheduler.timesteps
        if self.generation is None or self.generation.timesteps is not timesteps:
            self.generation = Generation(self.schedule, timesteps, len(timesteps))
        return self.generation
