"""The hook that replaces a stock pipeline's denoiser call: it finds out which step and branch is called, and how."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from diffusers.hooks import HookRegistry
from diffusers.hooks.hooks import BaseState, StateManager
from torch import Tensor
from torch.utils._pytree import tree_leaves

from hybridiff.errors import UsageError
from hybridiff.models.execution import execution_device, model_offload_suspended
from hybridiff.models.families import family_of
from hybridiff.models.guidance import clamped_weight, guidance_weight
from hybridiff.models.inputs import map_tensors
from hybridiff.parallel.call import DenoiserCall, check_one_prediction, with_prediction
from hybridiff.parallel.compatibility import HOOK_NAME, check_attention
from hybridiff.parallel.generation import Generation, Observed, Phase, Style, begin_generation
from hybridiff.parallel.hooks import ForwardHook, remove_hook
from hybridiff.parallel.learning import (
    can_be_made_ahead,
    conditional_half_first,
    has_four_branches,
    network_state,
    object_states,
    order_of_calls,
)
from hybridiff.parallel.notices import Notices
from hybridiff.parallel.placement import Placement
from hybridiff.parallel.steps import Steps, observe_single
from hybridiff.schedule import Branches, Decision, Full, Sampler, SamplerReader, Schedule, StepKind, StepPolicy, relative_mae


class DenoiserHook(ForwardHook):
    """Finds out how the pipeline calls its denoiser, and has each step executed as the schedule's policy decides.

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
        self._steps = Steps(pipeline, placement)
        self._samplers = SamplerReader(quiet=not placement.is_log_rank)
        self._notices = Notices(type(pipeline).__name__, schedule, placement)
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
                remove_hook(self._denoiser, HOOK_NAME)
        self._denoiser = None
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
        call = DenoiserCall(self.fn_ref.original_forward, args, kwargs)
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
        run.agreed = repr((_options(self.schedule), self._weight(), run.sampler, rescale, threads))
        self.schedule.check(run.sampler)

    def _first_call(self, run: Generation, call: DenoiserCall) -> Tensor:
        """The first call of a step: the prediction for the pipeline."""
        phase = run.phase
        if phase is not None and (phase.rows != call.rows or phase.pending or phase.unforeseen):
            ended = phase.style is Style.DOUBLED and phase.rows == 2 * call.rows  # equal images are no doubled batch then
            phase = self._restart(run, call, Style.LEARNING if ended else None)  # guidance has begun or ended in mid-run
        elif phase is not None and phase.style is Style.DOUBLED and phase.computed:
            phase = self._confirm(run, phase, call)
        if phase is None:
            phase = self._restart(run, call, None)
        if phase.style is Style.LEARNING and phase.computed:
            self._learn(run, phase, call)
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

    def _restart(self, run: Generation, call: DenoiserCall, style: Style | None) -> Phase:
        """A new phase from this call on; its style is told by the call if None."""
        if run.phase is not None:
            self.placement.reset()
        if style is None:
            style = Style.DOUBLED if self._doubles(call) else Style.LEARNING
        run.phase = Phase(style, run.step, call.rows, conditional_first=self._family.conditional_first)
        return run.phase

    def _doubled(self, run: Generation, phase: Phase, call: DenoiserCall) -> Tensor:
        """A step of a pipeline with one call on a doubled batch."""
        if phase.policy is None:
            assert run.sampler is not None
            phase.policy = self._policy(run.sampler.part(phase.first, self._weight() or 1.0), phase)
        if run.step != phase.first:
            return self._steps.doubled(run, phase, call)
        phase.present, states = call, self._states(call) if self._is_guess else ({}, None)
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
        assert self._denoiser is not None
        return object_states(call), network_state(self._denoiser)

    def _further_call(self, run: Generation, phase: Phase, call: DenoiserCall) -> Tensor:
        """A call with the timestep of the one before it: another branch of the same step."""
        if phase.style is Style.LEARNING:
            phase.regular &= call.repeats(phase.computed[0].call)
            return self._as_called(run, phase, call)
        same = phase.present is not None and (not self._is_guess or call.repeats(phase.present))
        for position in phase.pending:
            if same and call.prompts_equal(phase.further[position]):
                return phase.pending.pop(position)
        phase.unforeseen = True  # guidance begins, or its inputs have changed: learned anew from the next step on
        prediction, run.output = self.placement.unguided_step(call, False, call.holds_tensors is None)
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
        computed, phase.computed, phase.calls = phase.computed, [], 0
        phase.first = run.step - 1
        assert run.sampler is not None
        if not (phase.regular and can_be_made_ahead(computed)):  # every call is computed as it is
            phase.regular, phase.calls = True, len(computed)
            return
        first = computed[0]
        if len(computed) == 1:
            guided = (self._weight() or 1.0) > 1
            if self._family.calls == "learned" and guided and call.multiplied(first.prediction.shape[1]):
                raise self._not_doubled()
            phase.style = Style.SINGLE
            halves = self.placement.segments(call.rows) and call.holds_tensors is None
            phase.policy = self._policy(run.sampler.part(phase.first, 1.0, halves), phase)
            run.trace.decisions[-1] = phase.policy.plan(0)
            observe_single(phase.policy, 0, first.prediction)
            self._notices.single(call, halves)
            return
        phase.style, phase.further = Style.BRANCHES, tuple(seen.call for seen in computed[1:])
        if len(computed) > 2:
            phase.policy, phase.calls = Full().begin(run.sampler), len(computed)
            return
        guess = self._family.calls == "learned"
        phase.unconditional_first, branches, fitted = order_of_calls(first, computed[1], call.model_input, guess)
        weight = self._weight()
        self._observe_first(run, phase, clamped_weight(fitted) if weight is None or guess else weight, branches)

    def _confirm(self, run: Generation, phase: Phase, call: DenoiserCall) -> Phase:
        """What the second step says of a batch that looked doubled in the first: its halves are equal still, and their order.

        Two images with the same noise look like a doubled batch too, and differ from the second step on.

        Returns:
            The phase, a new one where the batch is not a doubled one.

        Raises:
            UsageError: the batch has four branches.
        """
        first = phase.computed.pop()
        if not self._is_guess:
            return phase
        if not call.doubled():
            run.trace.discrepancies.pop(phase.first, None)
            return self._restart(run, call, Style.LEARNING)
        if self._family.calls != "learned":
            return phase
        if has_four_branches(first, call):
            raise self._not_doubled()
        if conditional_half_first(first, call):
            phase.conditional_first = True
            conditional, unconditional = first.prediction.chunk(2)
            self.placement.reset()
            self._observe_first(run, phase, self._weight() or 1.0, Branches(conditional, conditional - unconditional))
        return phase

    def _observe_first(self, run: Generation, phase: Phase, weight: float, branches: Branches) -> None:
        """A new policy of the phase, that is told of its first step."""
        assert run.sampler is not None
        phase.policy = self._policy(run.sampler.part(phase.first, weight), phase)
        run.trace.decisions[-1] = phase.policy.plan(0)
        discrepancy = relative_mae(branches.conditional, branches.conditional - branches.difference)
        run.trace.discrepancies[phase.first] = discrepancy
        phase.policy.full(0, branches, discrepancy)

    def _policy(self, sampler: Sampler, phase: Phase) -> StepPolicy:
        """A policy for the steps of a phase; full steps only where guidance changes too late for the schedule."""
        try:
            return self.schedule.begin(sampler)
        except UsageError:
            if phase.first == 0:
                raise
            return Full().begin(sampler)

    @property
    def _is_guess(self) -> bool:
        """Whether the style of a run is told by its calls alone, and so may be told wrongly."""
        return self._family.calls == "learned" or self._family.may_end

    def _in_present_step(self, run: Generation, phase: Phase, call: DenoiserCall) -> bool:
        """Whether a call belongs to the step of the call before it: the sampler has not moved, or the inputs are the same."""
        counts = hasattr(self.pipeline.scheduler, "step_index")
        moved = counts and self._marker() != phase.marker
        if phase.style is not Style.DOUBLED:
            return phase.present is not None and (not moved if counts else call.repeats(phase.present))
        by_calls = counts and self._family.calls == "learned"  # a known pipeline makes no further call
        if phase.present is None:
            return by_calls and not moved
        same = not moved and (by_calls or call.repeats(phase.present))
        if same:
            self._not_doubled_after_all(run, phase)
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

    def _doubles(self, call: DenoiserCall) -> bool:
        """Whether a call is on a doubled batch. Synchronises with the device.

        Raises:
            UsageError: it is not, of a pipeline that doubles its batch for guidance.
        """
        weight = self._weight()
        if self._family.calls == "branches" or weight is None or weight <= 1:
            return False
        if call.holds_tensors is not None:  # rows that cannot be told from one another: one prediction, of all of them
            return False
        if call.doubled():
            return True
        if self._family.calls == "learned" or self._family.may_end:
            return False
        raise self._not_doubled()

    def _weight(self) -> float | None:
        return guidance_weight(self.pipeline) if self.guidance_scale is None else self.guidance_scale

    def _not_doubled_after_all(self, run: Generation, phase: Phase) -> None:
        """A second call in the first step shows a call per branch, whose equal rows looked like a doubled batch.

        Raises:
            UsageError: the pipeline is known to double its batch.
        """
        if self._family.calls == "doubled" or self.guidance_scale is not None:
            raise self._not_doubled()
        phase.style, phase.policy = Style.LEARNING, None
        run.trace.discrepancies.pop(phase.first, None)
        self.placement.reset()

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
            if run is not None and not run.ended:
                self.abandon_run()
            self.placement.reset()
            assert self._denoiser is not None
            check_attention(self.pipeline, self._denoiser)  # processors may have been set since parallelize
            run = self.generation = begin_generation(self.pipeline, call.timestep, self.schedule.name)
        return run


def _options(schedule: Schedule) -> list[tuple[str, Any]]:
    """A schedule's name and those of its options whose text is equal in every process."""
    names: list[str] = [field.name for field in fields(schedule)] if is_dataclass(schedule) else []
    options = [(name, getattr(schedule, name)) for name in names]
    return [("name", schedule.name), *((name, value) for name, value in options if isinstance(value, int | float | str | None))]
