"""The hook that replaces a stock pipeline's denoiser call: it finds out which step and branch of a run is called."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from diffusers.hooks import HookRegistry
from diffusers.hooks.hooks import BaseState, StateManager
from torch import Tensor
from torch.utils._pytree import tree_leaves

from hybridiff.errors import UsageError
from hybridiff.models.execution import execution_device, model_offload_suspended
from hybridiff.models.inputs import map_tensors
from hybridiff.models.row_axes import RowAxes
from hybridiff.parallel.call import DenoiserCall, check_one_prediction, with_prediction
from hybridiff.parallel.compatibility import HOOK_NAME, check_attention
from hybridiff.parallel.generation import Generation, Observed, Phase, Style, begin_generation
from hybridiff.parallel.hooks import ForwardHook, remove_hook
from hybridiff.parallel.learning import StyleLearner, network_state, object_states
from hybridiff.parallel.notices import Notices
from hybridiff.parallel.placement import Placement
from hybridiff.parallel.steps import Steps
from hybridiff.schedule import Decision, SamplerReader, Schedule, StepKind


class DenoiserHook(ForwardHook):
    """Finds out which step and branch is called, and has each step executed as the schedule's policy decides.

    Where a pipeline calls its denoiser once per branch, the first call of a step computes all branches, and further calls are
    answered with what the first one computed for them.

    Args:
        pipeline: pipeline of the denoiser; read for guidance and timesteps.
        denoiser: its denoiser.
        schedule: schedule of all runs.
        placement: executes steps on the group.
        guidance_scale: guidance scale of all runs, for pipelines that do not report it.
    """

    _is_stateful = True  # so that pipelines announce their branches to it, by cache_context

    def __init__(
        self,
        pipeline: Any,
        denoiser: torch.nn.Module,
        schedule: Schedule,
        placement: Placement,
        guidance_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.pipeline = pipeline
        self.schedule = schedule
        self.placement = placement
        self.generation: Generation | None = None
        self._denoiser = denoiser
        self._axes = RowAxes.of(denoiser)
        self._steps = Steps(pipeline, placement)
        self._samplers = SamplerReader(quiet=not placement.is_log_rank)
        self._notices = Notices(type(pipeline).__name__, schedule, placement)
        self._learner = StyleLearner(pipeline, schedule, placement, guidance_scale, self._notices)
        self._context = StateManager(BaseState)

    def attach(self) -> None:
        """Installs the hook."""
        with model_offload_suspended(self.pipeline):
            HookRegistry.check_if_exists_or_initialize(self._denoiser).register_hook(self, HOOK_NAME)

    def detach(self) -> None:
        """Removes the hook and those on the denoiser's blocks."""
        with model_offload_suspended(self.pipeline):
            remove_hook(self._denoiser, HOOK_NAME)
        self.placement.remove_hooks()

    def abandon_run(self) -> None:
        """Drops the present run, which ended early on all ranks of the group alike."""
        self.generation = None
        self.placement.reset()
        self.placement.resynchronize()

    def reset_state(self, module: torch.nn.Module) -> torch.nn.Module:
        """Called by pipelines at their end; each run has a state of its own anyway."""
        return module

    @torch.compiler.disable(recursive=False)
    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Replaces the denoiser's forward: same arguments and kind of output, called on every rank of the group."""
        args, kwargs = map_tensors(lambda tensor: tensor, (args, kwargs))  # pipelines change their dicts between two calls
        call = DenoiserCall(self.fn_ref.original_forward, args, kwargs, axes=self._axes)
        if kwargs.get("skip_layers") is not None:  # the pipeline shows it only in the second call, some steps into a run
            raise UsageError("skip_guidance_layers calls the denoiser a second time in a step; allowed: None")
        run = self._current_generation(call)
        if run.sampler is None:
            self._begin(run, module)
        call = replace(call, agreed=run.agreed)
        phase = run.phase
        if phase is not None and self._in_present_step(run, phase, call):
            prediction = self._further_call(run, phase, call)
            return with_prediction(run.output, prediction)
        prediction = self._first_call(run, call)
        if run.phase is not None and run.phase.style is not Style.LEARNING:
            check_one_prediction(run.output)
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
        run.agreed = repr((_options(self.schedule), self._learner.weight, run.sampler, rescale, threads))
        self.schedule.check(run.sampler)

    def _first_call(self, run: Generation, call: DenoiserCall) -> Tensor:
        """The first call of a step: the prediction for the pipeline."""
        phase = run.phase
        if phase is not None and (phase.rows != call.rows or phase.pending or phase.unforeseen):
            ended = phase.style is Style.DOUBLED and phase.rows == 2 * call.rows  # equal images are no doubled batch then
            phase = self._learner.restart(run, call, Style.LEARNING if ended else None)  # guidance has begun or ended in mid-run
        elif phase is not None and phase.style is Style.DOUBLED and phase.computed:
            phase = self._learner.confirm(run, phase, call)
        if phase is None:
            phase = self._learner.restart(run, call, None)
        if phase.style is Style.LEARNING and phase.computed:
            self._learner.learn(run, phase, call)
        phase.marker = self._marker()
        if phase.style is Style.DOUBLED:
            return self._doubled(run, phase, call)
        phase.present = call
        if phase.style is Style.BRANCHES:
            return self._steps.branches(run, phase, call)
        if phase.style is Style.SINGLE:
            return self._steps.single(run, phase, call)
        run.trace.decisions.append(Decision(StepKind.FULL, "first step"))
        return self._as_called(run, phase, call)

    def _doubled(self, run: Generation, phase: Phase, call: DenoiserCall) -> Tensor:
        """A step of a pipeline with one call on a doubled batch."""
        if run.step != phase.first:
            return self._steps.doubled(run, phase, call)
        phase.present, states = call, self._states(call) if self._learner.is_guess else ({}, None)
        prediction = self._steps.doubled(run, phase, call)
        phase.computed = [Observed(self._announced(), call, self._steps.sampled(run, prediction, call), *states)]
        return prediction

    def _as_called(self, run: Generation, phase: Phase, call: DenoiserCall) -> Tensor:
        """A call that is computed as it is, its rows shared by the ranks, and remembered to learn from."""
        states = self._states(call)
        shared = not states[0]  # rows of objects are not known
        prediction, run.output = self.placement.unguided_step(call, run.step == 1, shared)  # the step is counted already
        if shared and self.placement.group_size > 1 and any(leaf is not None for leaf in tree_leaves(run.output[1:])):
            prediction, run.output = self.placement.unguided_step(call, False, False)  # all rows of what else it returns
        phase.regular &= states[0] == object_states(call)
        phase.computed.append(Observed(self._announced(), call, self._steps.sampled(run, prediction, call), *states))
        return prediction

    def _states(self, call: DenoiserCall) -> tuple[dict[int, Any], Any]:
        """The states of an ``Observed`` call."""
        return object_states(call), network_state(self._denoiser)

    def _further_call(self, run: Generation, phase: Phase, call: DenoiserCall) -> Tensor:
        """A call with the timestep of the one before it: another branch of the same step."""
        if phase.style is Style.LEARNING:
            phase.regular &= call.repeats(phase.computed[0].call)
            return self._as_called(run, phase, call)
        same = phase.present is not None and (not self._learner.is_guess or call.repeats(phase.present))
        for position in phase.pending:
            if same and call.prompts_equal(phase.further[position]):
                return phase.pending.pop(position)
        phase.unforeseen = True  # guidance begins, or its inputs have changed: learned anew from the next step on
        prediction, run.output = self.placement.unguided_step(call, False, call.holds_tensors is None)
        return prediction

    def _in_present_step(self, run: Generation, phase: Phase, call: DenoiserCall) -> bool:
        """Whether a call belongs to the step of the call before it: the sampler has not moved, or the inputs are the same."""
        counts = hasattr(self.pipeline.scheduler, "step_index")
        moved = counts and self._marker() != phase.marker
        if phase.style is not Style.DOUBLED:
            return phase.present is not None and (not moved if counts else call.repeats(phase.present))
        by_calls = counts and self._learner.counts_calls
        if phase.present is None:
            return by_calls and not moved
        same = not moved and (by_calls or call.repeats(phase.present))
        if same:
            self._learner.not_doubled_after_all(run, phase)
        else:
            phase.present = None
        return same

    def _marker(self) -> Any:
        """The step that the sampler is at, known without a device synchronisation."""
        return getattr(self.pipeline.scheduler, "step_index", None)

    def _announced(self) -> str | None:
        """The name of the branch, where the pipeline announces it by ``cache_context``."""
        try:
            return str(self._context.context.name)
        except ValueError:
            return None

    def _finish(self, run: Generation) -> None:
        phase = run.phase
        self._notices.finished(run)
        if phase is not None:
            phase.policy = None
            if phase.style is not Style.LEARNING and phase.present is None:
                phase.computed = []  # else one more call of the only step may come
        if phase is None or phase.style is Style.DOUBLED:
            run.output = None
        self.placement.reset()

    def _current_generation(self, call: DenoiserCall) -> Generation:
        """The generation that a call belongs to: a new one at the first call of a run."""
        run = self.generation
        if run is None or not run.belongs_to(self.pipeline):
            if run is not None and not run.ended:
                self.abandon_run()
            self.placement.reset()
            check_attention(self.pipeline, self._denoiser)  # processors may have been set since parallelize
            run = self.generation = begin_generation(self.pipeline, call.timestep, self.schedule.name)
        return run


def _options(schedule: Schedule) -> list[tuple[str, Any]]:
    """A schedule's name and those of its options whose text is equal in every process."""
    names: list[str] = [field.name for field in fields(schedule)] if is_dataclass(schedule) else []
    options = [(name, getattr(schedule, name)) for name in names]
    return [("name", schedule.name), *((name, value) for name, value in options if isinstance(value, int | float | str | None))]
