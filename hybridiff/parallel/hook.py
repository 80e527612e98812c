"""The hook that replaces a stock pipeline's denoiser call: it finds out what is called, and executes the schedule's decisions."""

import logging
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from diffusers.hooks import HookRegistry
from diffusers.hooks.hooks import BaseState, StateManager
from torch import Tensor

from hybridiff.errors import UsageError
from hybridiff.models.execution import execution_device, model_offload_suspended
from hybridiff.models.families import family_of
from hybridiff.models.guidance import guidance_weight, learned_weight, sampled_channels
from hybridiff.models.inputs import map_tensors
from hybridiff.parallel.call import AnyCall, BranchCalls, DenoiserCall, swap_halves, with_prediction
from hybridiff.parallel.compatibility import HOOK_NAME, check_attention
from hybridiff.parallel.generation import Generation, Phase, Style, begin_generation
from hybridiff.parallel.hooks import ForwardHook
from hybridiff.parallel.placement import Placement
from hybridiff.schedule import Branches, Decision, Full, Sampler, SamplerReader, Schedule, StepKind, StepPolicy, relative_mae

_LOG = logging.getLogger(__name__)
FEW_STEPS = 8  # runs of so few steps may leave nothing to skip


class DenoiserHook(ForwardHook):
    """Asks the schedule's policy for the kind of each step, executes the step on the group, and reports its predictions to it.

    A pipeline that doubles its batch is known by its first call. One that calls its denoiser once per branch is known after its
    first step, whose calls are computed as they are; from then on its first call of a step computes both branches, and the
    second call is answered with what the first one computed for it.

    Args:
        pipeline: pipeline of the denoiser; read for guidance and timesteps.
        schedule: schedule of all runs.
        placement: executes steps on the group.
        guidance_scale: guidance scale of all runs, for pipelines that do not report it.
    """

    _is_stateful = True  # so that pipelines announce their branches to it, by cache_context

    def __init__(self, pipeline: Any, schedule: Schedule, placement: Placement, guidance_scale: float | None = None) -> None:
        super().__init__()
        self.pipeline = pipeline
        self.guidance_scale = guidance_scale
        self.schedule = schedule
        self.placement = placement
        self.generation: Generation | None = None
        self._denoiser: torch.nn.Module | None = None
        self._samplers = SamplerReader(quiet=not placement.is_log_rank)
        self._logged = set[str]()
        self._family = family_of(type(pipeline))
        self._context = StateManager(BaseState)

    def attach(self, denoiser: torch.nn.Module) -> None:
        """Installs the hook."""
        with model_offload_suspended(self.pipeline):
            HookRegistry.check_if_exists_or_initialize(denoiser).register_hook(self, HOOK_NAME)
        self._denoiser = denoiser

    def detach(self) -> None:
        """Removes the hook and those on the denoiser's blocks."""
        if self._denoiser is not None:
            with model_offload_suspended(self.pipeline):
                HookRegistry.check_if_exists_or_initialize(self._denoiser).remove_hook(HOOK_NAME, recurse=False)
        self._denoiser = None
        self.placement.remove_hooks()

    def reset_state(self, module: torch.nn.Module) -> torch.nn.Module:
        """Called by pipelines at their end; each run has a state of its own anyway."""
        return module

    @torch.compiler.disable(recursive=False)
    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Replaces the denoiser's forward: same arguments and kind of output, called on every rank of the group."""
        args, kwargs = map_tensors(lambda tensor: tensor, (args, kwargs))  # pipelines change their dicts between two calls
        call = DenoiserCall(self.fn_ref.original_forward, args, kwargs)
        if kwargs.get("skip_layers") is not None:  # the pipeline shows it only in the second call, some steps into a run
            raise UsageError("skip_guidance_layers calls the denoiser a second time in a step; allowed: None")
        run = self._current_generation(call)
        if run.sampler is None:
            self._begin(run, module)
        call = replace(call, agreed=run.agreed)
        phase = run.phase
        if phase is not None and self._in_present_step(phase, call):
            return with_prediction(run.output, self._further_call(run, phase, call))
        prediction = self._first_call(run, call)
        run.timestep = call.timestep
        output = with_prediction(run.output, prediction)
        if run.ended:  # frees memory for decoding
            self._finish(run)
        return output

    def _begin(self, run: Generation, denoiser: torch.nn.Module) -> None:
        """Reads the sampler, and checks that the schedule fits it."""
        run.sampler = self._samplers.read(self.pipeline.scheduler, type(denoiser).__name__, 1.0, run.first, run.calls)
        threads = torch.get_num_threads() if execution_device(self.pipeline, denoiser).type == "cpu" else 0
        rescale = getattr(self.pipeline, "guidance_rescale", 0.0)
        run.agreed = repr((_options(self.schedule), self._weight(), run.sampler, rescale, threads))
        self.schedule.check(run.sampler)

    def _first_call(self, run: Generation, call: DenoiserCall) -> Tensor:
        """The first call of a step: the prediction for the pipeline."""
        phase = run.phase
        if phase is not None and (phase.rows != call.rows or phase.pending is not None or phase.unforeseen):
            phase = None  # guidance has begun or ended in mid-run
        if phase is None:
            phase = run.phase = Phase(Style.DOUBLED if self._doubles(call) else Style.LEARNING, run.step, call.rows)
        if phase.style is Style.LEARNING and phase.computed:
            self._learn(run, phase, call)
        phase.marker = self._marker()
        if phase.style is Style.DOUBLED:
            return self._doubled(run, phase, call)
        phase.present = call
        if phase.style is Style.BRANCHES:
            return self._branches(run, phase, call)
        if phase.style is Style.SINGLE:
            return self._single(run, phase, call)
        run.trace.decisions.append(Decision(StepKind.FULL, "first step"))
        return self._as_called(run, phase, call)

    def _doubled(self, run: Generation, phase: Phase, call: DenoiserCall) -> Tensor:
        """A step of a pipeline with one call on a doubled batch."""
        if phase.policy is None:
            assert run.sampler is not None
            phase.policy = self._policy(run.sampler.part(phase.first, self._weight() or 1.0, 2), phase)
        decision = phase.policy.plan(run.step - phase.first)
        ordered = call.swap_branches() if self._family.conditional_first else call
        prediction = self._guided(run, phase, decision, ordered)
        if run.step == phase.first:
            phase.present, phase.computed = call, [(self._announced(), call, prediction)]
        run.trace.decisions.append(decision)
        return swap_halves(prediction) if self._family.conditional_first else prediction

    def _branches(self, run: Generation, phase: Phase, call: DenoiserCall) -> Tensor:
        """A step of a pipeline with one call per branch: both are made at the first call."""
        assert phase.policy is not None and phase.further is not None
        further = phase.further.beside(call)
        calls = BranchCalls(call, further, run.agreed) if phase.unconditional_first else BranchCalls(further, call, run.agreed)
        decision = phase.policy.plan(run.step - phase.first)
        early = decision.kind is StepKind.HALF and run.step == phase.first + 1  # the learned step has filled no cache
        if decision.kind is StepKind.PIPELINED or (early and self.placement.group_size > 1):  # a full step costs as much
            decision = replace(decision, kind=StepKind.FULL, shift_time=False)
        branches = self._guided(run, phase, decision, calls).chunk(2)
        run.trace.decisions.append(decision)
        first = 0 if phase.unconditional_first else 1
        phase.pending = branches[1 - first]
        return branches[first]

    def _single(self, run: Generation, phase: Phase, call: DenoiserCall) -> Tensor:
        """A step with one prediction, which stands for e_c; D is 0. What is computed is computed by the whole network."""
        assert phase.policy is not None
        step = run.step - phase.first
        decision = phase.policy.plan(step)
        if decision.kind is StepKind.SKIP:
            run.trace.decisions.append(decision)
            return run.padded(phase.policy.skip(step).conditional)
        prediction, run.output = self.placement.unguided_step(call, False)
        sampled = self._sampled(run, prediction, call)
        if decision.kind is StepKind.HALF:
            replaced: Branches | None = phase.policy.half(step, sampled)
        else:
            replaced = _observe(phase.policy, step, sampled)
        run.trace.decisions.append(replace(decision, kind=StepKind.FULL, shift_time=False))
        return prediction if replaced is None else run.padded(replaced.conditional)

    def _guided(self, run: Generation, phase: Phase, decision: Decision, call: AnyCall) -> Tensor:
        """One step with guidance: the doubled prediction, (2 batch, ...)."""
        step, first = run.step - phase.first, run.step == 0
        policy = phase.policy
        assert policy is not None
        if decision.kind is StepKind.SKIP:
            assert step, "a generation begins with a computed step"
            return run.padded(policy.skip(step).doubled())
        shifted = call.at(run.timestep) if decision.shift_time and step else call
        prediction, run.output = self.placement.guided_step(decision.kind, shifted, run.step, first, decision.last)
        sampled = self._sampled(run, prediction, call)
        if decision.kind is StepKind.HALF:
            return run.padded(policy.half(step, sampled).doubled())
        unconditional, conditional = sampled.chunk(2)
        discrepancy = relative_mae(conditional, unconditional)
        run.trace.discrepancies[run.step] = discrepancy
        replaced = policy.full(step, Branches(conditional, conditional - unconditional), discrepancy)
        return prediction if replaced is None else run.padded(replaced.doubled())

    def _sampled(self, run: Generation, prediction: Tensor, call: AnyCall) -> Tensor:
        """The channels of a prediction that the sampler uses."""
        channels = sampled_channels(prediction, call.model_input, self.pipeline.scheduler)
        run.dtype, run.unused_channels = prediction.dtype, prediction.shape[1] - channels
        return prediction[:, :channels]

    def _as_called(self, run: Generation, phase: Phase, call: DenoiserCall) -> Tensor:
        """A call that is computed as it is, its rows shared by the ranks, and remembered to learn from."""
        prediction, run.output = self.placement.unguided_step(call, run.step == 1)  # the step is counted already
        phase.computed.append((self._announced(), call, self._sampled(run, prediction, call)))
        return prediction

    def _further_call(self, run: Generation, phase: Phase, call: DenoiserCall) -> Tensor:
        """A call with the timestep of the one before it: another branch of the same step."""
        if phase.style is Style.LEARNING:
            phase.regular &= call.repeats(phase.computed[0][1])
            return self._as_called(run, phase, call)
        pending, phase.pending = phase.pending, None
        if pending is not None and phase.further is not None and call.prompts_equal(phase.further):
            return pending
        phase.unforeseen = True  # guidance begins, or its inputs have changed: learned anew from the next step on
        prediction, run.output = self.placement.unguided_step(call, False)
        return prediction

    def _learn(self, run: Generation, phase: Phase, call: DenoiserCall) -> None:
        """What the calls of the step before this one say about all steps.

        Args:
            run: present run.
            phase: its phase.
            call: first call of the step after the learned one.

        Raises:
            UsageError: the pipeline has guidance of a kind that is not known.
        """
        computed, phase.computed = phase.computed, []
        phase.first = run.step - 1
        assert run.sampler is not None
        hidden = len(computed) == 2 and computed[1][1].prompts_equal(computed[0][1])  # what differs is not in the inputs
        if len(computed) > 2 or hidden or not phase.regular:  # every call is computed as it is
            self._log_once(f"{type(self.pipeline).__name__} calls its denoiser {len(computed)} times in a step, so all are full")
            phase.regular = True
            return
        if len(computed) == 1:
            if (
                self._family.calls == "learned"
                and (self._weight() or 1.0) > 1
                and computed[0][1].multiplied(computed[0][2].shape[1])
            ):
                raise self._not_doubled()
            phase.style = Style.SINGLE
            phase.policy = self._policy(run.sampler.part(phase.first, 1.0, 1), phase)
            run.trace.decisions[-1] = phase.policy.plan(0)
            _observe(phase.policy, 0, computed[0][2])
            self._log_single(call)
            return
        (name, first, one), (_, phase.further, other) = computed
        phase.style, phase.unconditional_first = Style.BRANCHES, name is not None and "uncond" in name
        unconditional, conditional = (one, other) if phase.unconditional_first else (other, one)
        weight = self._weight()
        if weight is None or self._family.calls == "learned":
            weight = learned_weight(first.model_input, call.model_input, unconditional, conditional)
        phase.policy = self._policy(run.sampler.part(phase.first, weight, 2), phase)
        run.trace.decisions[-1] = phase.policy.plan(0)
        discrepancy = run.trace.discrepancies[phase.first] = relative_mae(conditional, unconditional)
        phase.policy.full(0, Branches(conditional, conditional - unconditional), discrepancy)

    def _policy(self, sampler: Sampler, phase: Phase) -> StepPolicy:
        """A policy for the steps of a phase; full steps only where guidance changes too late for the schedule."""
        try:
            return self.schedule.begin(sampler)
        except UsageError:
            if phase.first == 0:
                raise
            return Full().begin(sampler)

    def _in_present_step(self, phase: Phase, call: DenoiserCall) -> bool:
        """Whether a call belongs to the step of the call before it: the sampler has not moved, or the inputs are the same."""
        counts = hasattr(self.pipeline.scheduler, "step_index")
        if phase.style is Style.DOUBLED:
            if phase.present is not None:
                return self._looked_doubled(phase, call)
            if counts and self._family.calls == "learned" and self._marker() == phase.marker:
                raise self._not_doubled()
            return False
        if phase.present is None:
            return False
        return self._marker() == phase.marker if counts else call.repeats(phase.present)

    def _marker(self) -> Any:
        """The step that the sampler is at, known without a device synchronisation."""
        return getattr(self.pipeline.scheduler, "step_index", None)

    def _announced(self) -> str | None:
        """The name of the branch, where the pipeline announces it by ``cache_context``."""
        try:
            return str(self._context.context.name)
        except ValueError:
            return None

    def _doubles(self, call: DenoiserCall) -> bool:
        """Whether a call is on a doubled batch. Synchronises with the device.

        Raises:
            UsageError: it is not, of a pipeline that doubles its batch for guidance.
        """
        weight = self._weight()
        if self._family.calls == "branches" or weight is None or weight <= 1:
            return False
        if call.doubled():
            return True
        if self._family.calls == "learned" or self._family.may_end:
            return False
        raise self._not_doubled()

    def _weight(self) -> float | None:
        return guidance_weight(self.pipeline) if self.guidance_scale is None else self.guidance_scale

    def _looked_doubled(self, phase: Phase, call: DenoiserCall) -> bool:
        """Whether the second call of a run is of the first step: equal rows of a call per branch look like a doubled batch.

        Raises:
            UsageError: it is, of a pipeline that is known to double its batch.
        """
        repeated = call.repeats(phase.computed[0][1])
        phase.present = None
        if not repeated:
            phase.computed = []
        elif self._family.calls == "doubled" or self.guidance_scale is not None:
            raise self._not_doubled()
        else:
            phase.style, phase.policy = Style.LEARNING, None
        return repeated

    def _log_single(self, call: DenoiserCall) -> None:
        """Says what a run without guidance gains from the schedule and from the group."""
        ranks, kinds = self.placement.group_size, self.schedule.kinds
        if ranks > 1 and call.rows == 1:
            self._log_once(
                f"guidance is off and the batch has one image, so {ranks} ranks are no faster than one; the images of larger "
                "batches are shared by the ranks"
            )
        if kinds != {StepKind.FULL} and StepKind.SKIP not in kinds:
            self._log_once(f"guidance is off, so all steps are full and schedule {self.schedule.name} has no effect")

    def _log_once(self, text: str) -> None:
        if self.placement.is_log_rank and text not in self._logged:
            _LOG.warning(text)
        self._logged.add(text)

    def _finish(self, run: Generation) -> None:
        phase = run.phase
        single = phase is not None and phase.style in (Style.SINGLE, Style.LEARNING)
        few = run.calls <= FEW_STEPS and run.trace.count(StepKind.FULL) == run.calls
        if single and few and StepKind.SKIP in self.schedule.kinds:
            self._log_once(f"{run.calls} steps are too few for schedule {self.schedule.name} to skip any")
        if phase is not None:
            phase.policy = None
            phase.computed = phase.computed if phase.style is Style.LEARNING else []
        if phase is None or phase.style is Style.DOUBLED:
            run.output = None
        self.placement.reset()

    def _not_doubled(self) -> UsageError:
        name = type(self.pipeline).__name__
        if self.guidance_scale is not None:
            return UsageError(
                f"guidance_scale is {self.guidance_scale!r} for parallelize, and {name} does not double its batch for guidance; "
                "allowed: the guidance_scale that it is called with, of pipelines that double the batch"
            )
        return UsageError(
            f"{name} calls its denoiser neither on one batch twice nor once per guidance branch (it may have three branches);"
            " allowed: pipelines with a conditional and an unconditional branch, or without guidance"
        )

    def _current_generation(self, call: DenoiserCall) -> Generation:
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


def _observe(policy: StepPolicy, step: int, prediction: Tensor) -> Branches | None:
    """Reports the one prediction of a full step without guidance."""
    nothing = prediction.new_zeros((len(prediction), *[1] * (prediction.ndim - 1)))
    return policy.full(step, Branches(prediction, nothing), nothing.flatten())


def _options(schedule: Schedule) -> list[tuple[str, Any]]:
    """A schedule's name and those of its options whose text is equal in every process."""
    names: list[str] = [field.name for field in fields(schedule)] if is_dataclass(schedule) else []
    options = [(name, getattr(schedule, name)) for name in names]
    return [("name", schedule.name), *((name, value) for name, value in options if isinstance(value, int | float | str | None))]
