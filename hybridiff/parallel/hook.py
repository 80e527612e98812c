"""The hook that replaces a stock pipeline's denoiser call, and the state of one run of the pipeline."""

import logging
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor

from hybridiff.errors import UsageError
from hybridiff.models.families import conditional_first
from hybridiff.models.guidance import sampled_channels
from hybridiff.parallel.call import DenoiserCall, swap_halves, with_prediction
from hybridiff.parallel.compatibility import HOOK_NAME, check_attention
from hybridiff.parallel.placement import Placement
from hybridiff.schedule import Branches, Decision, SamplerReader, Schedule, StepKind, StepPolicy, Trace, relative_mae

_LOG = logging.getLogger(__name__)


class DenoiserHook(ModelHook):
    """Asks the schedule's policy for the kind of each step, executes the step on the group, and reports its predictions to it.

    Args:
        pipeline: pipeline of the denoiser; read for guidance and timesteps.
        schedule: schedule of all runs.
        placement: executes steps on the group.
        guidance_scale: guidance scale of all runs, for pipelines that do not report it.
    """

    def __init__(self, pipeline: Any, schedule: Schedule, placement: Placement, guidance_scale: float | None = None) -> None:
        super().__init__()
        self.pipeline = pipeline
        self.guidance_scale = guidance_scale
        self.schedule = schedule
        self.placement = placement
        self.generation: Generation | None = None
        self._denoiser: torch.nn.Module | None = None
        self._samplers = SamplerReader(quiet=not placement.is_log_rank)
        self._warned = False
        self._conditional_first = conditional_first(type(pipeline))

    def attach(self, denoiser: torch.nn.Module) -> None:
        """Installs the hook."""
        HookRegistry.check_if_exists_or_initialize(denoiser).register_hook(self, HOOK_NAME)
        self._denoiser = denoiser

    def detach(self) -> None:
        """Removes the hook and those on the denoiser's blocks."""
        if self._denoiser is not None:
            HookRegistry.check_if_exists_or_initialize(self._denoiser).remove_hook(HOOK_NAME, recurse=False)
        self._denoiser = None
        self.placement.remove_hooks()

    @torch.compiler.disable(recursive=False)
    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Replaces the denoiser's forward: same arguments and kind of output, called on every rank of the group."""
        call = DenoiserCall(self.fn_ref.original_forward, args, kwargs)
        if kwargs.get("skip_layers") is not None:  # the pipeline shows it only in the second call, some steps into a run
            raise UsageError("skip_guidance_layers calls the denoiser a second time in a step; allowed: None")
        generation = self._current_generation(call)
        first = generation.step == 0
        if self._guidance_is_on():
            self._check_one_call_per_step(generation, call)
            policy = self._policy(generation, module, call)
            decision = policy.plan(generation.step)
            ordered = call.swap_branches() if self._conditional_first else call
            prediction = self._guided(generation, policy, decision, replace(ordered, agreed=generation.agreed), first)
            prediction = swap_halves(prediction) if self._conditional_first else prediction
        else:
            decision = self._unguided()
            prediction, generation.output = self.placement.unguided_step(call, first)
        generation.trace.decisions.append(decision)
        generation.timestep = call.timestep
        output = with_prediction(generation.output, prediction)
        if generation.ended:  # frees memory for decoding
            generation.policy = generation.output = None
            self.placement.reset()
        return output

    def _guided(self, run: "Generation", policy: StepPolicy, decision: Decision, call: DenoiserCall, first: bool) -> Tensor:
        """One step with guidance: the doubled prediction for the pipeline, (2 batch, channels, height, width)."""
        if decision.kind is StepKind.SKIP:
            assert not first, "a generation begins with a computed step"
            return run.doubled_prediction(policy.skip(run.step))
        shifted = call.at(run.timestep) if decision.shift_time and not first else call
        prediction, run.output = self.placement.guided_step(decision.kind, shifted, run.step, first, decision.last)
        channels = sampled_channels(prediction, call.model_input, self.pipeline.scheduler)
        run.dtype, run.unused_channels = prediction.dtype, prediction.shape[1] - channels
        if decision.kind is StepKind.HALF:
            return run.doubled_prediction(policy.half(run.step, prediction[:, :channels]))
        unconditional, conditional = prediction[:, :channels].chunk(2)
        discrepancy = relative_mae(conditional, unconditional)
        run.trace.discrepancies[run.step] = discrepancy
        replaced = policy.full(run.step, Branches(conditional, conditional - unconditional), discrepancy)
        return prediction if replaced is None else run.doubled_prediction(replaced)

    def _check_one_call_per_step(self, generation: "Generation", call: DenoiserCall) -> None:
        """Checks that the second call of a run is another step: equal rows of a call per branch look like a doubled batch.

        Raises:
            UsageError: it has the latents and timestep of the first call.
        """
        if generation.step == 0:
            generation.first_call = call
        elif generation.first_call is not None:
            if call.repeats(generation.first_call):
                raise self._not_doubled()
            generation.first_call = None

    def _guidance_is_on(self) -> bool:
        scale = self.guidance_scale
        return bool(self.pipeline.do_classifier_free_guidance) if scale is None else scale > 1

    def _unguided(self) -> Decision:
        """The decision in a run without guidance, which is always full; logs that once."""
        if not self._warned and self.placement.is_log_rank and self.schedule.kinds != {StepKind.FULL}:
            _LOG.warning("guidance is off, so all steps are full and schedule %s has no effect", self.schedule.name)
        self._warned = True
        return Decision(StepKind.FULL, "no guidance")

    def _policy(self, generation: "Generation", denoiser: torch.nn.Module, call: DenoiserCall) -> StepPolicy:
        """The generation's policy; created, after checks, in its first step with guidance."""
        if generation.policy is None:
            if not call.doubled():
                raise self._not_doubled()
            scheduler, name = self.pipeline.scheduler, type(denoiser).__name__
            scale = float(self.pipeline.guidance_scale if self.guidance_scale is None else self.guidance_scale)
            sampler = self._samplers.read(scheduler, name, scale, generation.first, generation.calls)
            generation.policy = self.schedule.begin(sampler)
            threads = torch.get_num_threads() if call.model_input.device.type == "cpu" else 0
            generation.agreed = repr((_options(self.schedule), sampler, getattr(self.pipeline, "guidance_rescale", 0.0), threads))
        return generation.policy

    def _not_doubled(self) -> UsageError:
        name = type(self.pipeline).__name__
        if self.guidance_scale is not None:
            return UsageError(
                f"guidance_scale is {self.guidance_scale!r} for parallelize, and {name} does not double its batch for guidance; "
                "allowed: the guidance_scale that it is called with, of pipelines that double the batch"
            )
        return UsageError(
            f"{name} does not call its denoiser on one batch twice (it may call it once per branch, or on more than two);"
            " allowed: pipelines that double the batch for guidance"
        )

    def _current_generation(self, call: DenoiserCall) -> "Generation":
        """The generation that a call belongs to: a new one at the first call of a run."""
        run = self.generation
        if run is None or not run.belongs_to(self.pipeline):
            self.placement.reset()
            if run is not None and not run.ended:
                self.placement.resynchronize()
            assert self._denoiser is not None
            check_attention(self.pipeline, self._denoiser)  # processors may have been set since parallelize
            run = self.generation = begin_generation(self.pipeline, call.timestep, self.schedule.name)
        return run


class Generation:
    """The state of one run of a pipeline.

    Args:
        timesteps: the scheduler's timesteps, (steps,).
        first: index of the timestep that the run begins with.
        calls: number of denoiser calls that the run makes.
        trace: record of its steps.

    Attributes:
        policy: the schedule's policy; set in the first step with guidance.
        timestep: timestep of the last denoiser call, as the pipeline passed it.
        output: output of the last computed step.
        dtype: data type of the predictions.
        unused_channels: channels of the predictions that the pipeline drops.
        first_call: first denoiser call, until the second.
        agreed: text of all that must be equal on the ranks of a group besides the denoiser's inputs.
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
        self.unused_channels = 0
        self.first_call: DenoiserCall | None = None
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

    def doubled_prediction(self, branches: Branches) -> Tensor:
        """[e_u, e_c] in the network's data type, (2 batch, channels, height, width); unused channels are 0."""
        return F.pad(branches.doubled().to(self.dtype), (0, 0, 0, 0, 0, self.unused_channels))


def begin_generation(pipeline: Any, timestep: Any, schedule: str) -> Generation:
    """The generation of a pipeline's first denoiser call.

    Args:
        pipeline: pipeline whose scheduler's timesteps are set.
        timestep: timestep of the call.
        schedule: name of the schedule, for the trace.
    """
    timesteps = pipeline.scheduler.timesteps
    first = first_timestep(pipeline.scheduler, timestep)
    left = len(timesteps) - first
    calls = getattr(pipeline, "num_timesteps", None)  # fewer where a pipeline runs over a part of the timesteps
    return Generation(timesteps, first, left if calls is None else min(calls, left), Trace(schedule))


def first_timestep(scheduler: Any, timestep: Any) -> int:
    """The index of the timestep of a run's first call; 0 where the pipeline passes timesteps in another unit."""
    begin = getattr(scheduler, "begin_index", None)
    if begin is not None:
        return int(begin)
    value = timestep.flatten()[0] if isinstance(timestep, Tensor) else timestep
    indices = (scheduler.timesteps == value).nonzero().flatten().tolist()
    return int(indices[0]) if indices else 0


def _options(schedule: Schedule) -> list[tuple[str, Any]]:
    """A schedule's name and those of its options whose text is equal in every process."""
    names: list[str] = [field.name for field in fields(schedule)] if is_dataclass(schedule) else []
    options = [(name, getattr(schedule, name)) for name in names]
    return [("name", schedule.name), *((name, value) for name, value in options if isinstance(value, int | float | str | None))]
