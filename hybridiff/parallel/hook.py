"""The hook that takes over a stock pipeline's denoiser call."""

import logging
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor

from hybridiff.errors import UsageError
from hybridiff.models.guidance import sampled_channels
from hybridiff.parallel.call import DenoiserCall, with_prediction
from hybridiff.parallel.fit import check_attention
from hybridiff.parallel.generation import Generation, begin_generation
from hybridiff.parallel.placement import Placement
from hybridiff.schedule import Branches, Decision, SamplerReader, Schedule, StepKind, StepPolicy, relative_mae

_LOG = logging.getLogger(__name__)
HOOK_NAME = "hybridiff"


class DenoiserHook(ModelHook):
    """Asks the schedule before each denoiser call, executes the step on the group, and tells the schedule what it showed.

    Args:
        pipeline: Whose denoiser it is; asked whether guidance is on and over which timesteps it runs.
        guidance_scale: Of all runs, where the pipeline does not tell it.
    """

    def __init__(self, pipeline: Any, schedule: Schedule, placement: Placement, guidance_scale: float | None = None) -> None:
        super().__init__()
        self.pipeline = pipeline
        self.guidance_scale = guidance_scale
        self.schedule = schedule
        self.placement = placement
        self.generation: Generation | None = None
        self._denoiser: torch.nn.Module | None = None
        self._samplers = SamplerReader(quiet=not placement.speaks)
        self._told = False

    def attach(self, denoiser: torch.nn.Module) -> None:
        """Takes over the denoiser's calls."""
        HookRegistry.check_if_exists_or_initialize(denoiser).register_hook(self, HOOK_NAME)
        self._denoiser = denoiser

    def detach(self) -> None:
        """Puts the denoiser and its atoms back as they were."""
        if self._denoiser is not None:
            HookRegistry.check_if_exists_or_initialize(self._denoiser).remove_hook(HOOK_NAME, recurse=False)
        self._denoiser = None
        self.placement.remove()

    @torch.compiler.disable(recursive=False)
    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Stands in for the denoiser's forward: same arguments, same kind of output, on every rank of the group."""
        call = DenoiserCall(self.fn_ref.original_forward, args, kwargs)
        if kwargs.get("skip_layers") is not None:  # Diffusers keeps this to itself until that second call, some steps into a run
            raise UsageError("skip_guidance_layers calls the denoiser a second time in a step; allowed: None")
        generation = self._running(call)
        first = generation.step == 0
        if self._guided_run():
            policy = self._policy(generation, module, call)
            decision = policy.plan(generation.step)
            prediction = self._guided(generation, policy, decision, replace(call, agreed=generation.agreed), first)
        else:
            decision = self._unguided()
            prediction, generation.output = self.placement.unguided_step(call, first)
        generation.trace.decisions.append(decision)
        generation.timestep = call.timestep
        output = with_prediction(generation.output, prediction)
        if generation.ended:  # nothing is kept while the latents are decoded
            generation.policy = generation.output = None
            self.placement.begin()
        return output

    def _guided(self, run: Generation, policy: StepPolicy, decision: Decision, call: DenoiserCall, first: bool) -> Tensor:
        """One step with guidance: the doubled prediction that the pipeline gets."""
        if decision.kind is StepKind.SKIP:
            assert not first, "nothing was computed yet that a skip step could be predicted from"
            return run.sent(policy.skip(run.step))
        asked = call.at(run.timestep) if decision.shift_time and not first else call
        prediction, run.output = self.placement.guided_step(decision.kind, asked, run.step, first, decision.last)
        channels = sampled_channels(prediction, call.model_input, self.pipeline.scheduler)
        run.dtype, run.unread = prediction.dtype, prediction.shape[1] - channels
        if decision.kind is StepKind.HALF:
            return run.sent(policy.half(run.step, prediction[:, :channels]))
        unconditional, conditional = prediction[:, :channels].chunk(2)
        discrepancy = relative_mae(conditional, unconditional)
        run.trace.discrepancies.append(discrepancy)
        sent = policy.full(run.step, Branches(conditional, conditional - unconditional), discrepancy)
        return prediction if sent is None else run.sent(sent)

    def _guided_run(self) -> bool:
        """Whether guidance is on: the pipeline tells, or its caller has told."""
        told = self.guidance_scale
        return bool(self.pipeline.do_classifier_free_guidance) if told is None else told > 1

    def _unguided(self) -> Decision:
        """A step of a run without guidance, in which there is nothing to choose; the log says so, once."""
        if not self._told and self.placement.speaks and self.schedule.kinds != {StepKind.FULL}:
            _LOG.warning("guidance is off, so every step is full and schedule %s decides nothing", self.schedule.name)
        self._told = True
        return Decision(StepKind.FULL, "no guidance")

    def _policy(self, generation: Generation, denoiser: torch.nn.Module, call: DenoiserCall) -> StepPolicy:
        """The generation's policy, made in its first step with guidance once nothing speaks against it."""
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

    def _running(self, call: DenoiserCall) -> Generation:
        """The running generation; at the first call of another run, a new one."""
        run = self.generation
        if run is None or not run.belongs_to(self.pipeline):
            self.placement.begin()
            if run is not None and not run.ended:
                self.placement.rejoin()
            assert self._denoiser is not None
            check_attention(self.pipeline, self._denoiser)  # again, as processors may have been set since
            run = self.generation = begin_generation(self.pipeline, call.timestep, self.schedule.name)
        return run


def _options(schedule: Schedule) -> list[tuple[str, Any]]:
    """A schedule's name and options, those alone whose text is the same in every process."""
    names: list[str] = [field.name for field in fields(schedule)] if is_dataclass(schedule) else []
    options = [(name, getattr(schedule, name)) for name in names]
    return [("name", schedule.name), *((name, value) for name, value in options if isinstance(value, int | float | str | None))]
