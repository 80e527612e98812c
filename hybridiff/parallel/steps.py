"""The execution of single steps: the policy's decision, the computation on the group, and the report to the policy."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from hybridiff.models.guidance import sampled_channels
from hybridiff.parallel.call import AnyCall, BranchCalls, DenoiserCall, swap_halves
from hybridiff.parallel.generation import Generation, Phase
from hybridiff.parallel.placement import Placement
from hybridiff.parallel.rank_work import SEGMENTED
from hybridiff.schedule import Branches, Decision, StepKind, StepPolicy, relative_mae


class Steps:
    """Asks a phase's policy for the kind of each step, executes the step on the group, and reports its predictions to the policy.

    Args:
        pipeline: pipeline of the denoiser; its scheduler says which channels of a prediction it uses.
        placement: executes steps on the group.
    """

    def __init__(self, pipeline: Any, placement: Placement) -> None:
        self.pipeline = pipeline
        self.placement = placement

    def doubled(self, run: Generation, phase: Phase, call: DenoiserCall) -> Tensor:
        """A step of a pipeline with one call on a doubled batch: the prediction, with the branches as in the call."""
        assert phase.policy is not None
        decision = phase.policy.plan(run.step - phase.first)
        ordered = call.swap_branches() if phase.conditional_first else call
        decision = self._possible(decision, ordered)
        prediction = self._guided(run, phase, decision, ordered)
        run.trace.decisions.append(decision)
        return swap_halves(prediction) if phase.conditional_first else prediction

    def branches(self, run: Generation, phase: Phase, call: DenoiserCall) -> Tensor:
        """A step of a pipeline with one call per branch: all are made at the first call, whose prediction is returned."""
        assert phase.policy is not None
        made = (call, *(further.beside(call) for further in phase.further))
        decision = phase.policy.plan(run.step - phase.first)
        calls = BranchCalls(made if phase.unconditional_first else made[::-1], run.agreed)
        if len(made) == 2:
            decision = self._possible(decision, calls)
            prediction = self._guided(run, phase, decision, calls)
        else:
            prediction, run.output = self.placement.branches_step(calls)
        branches = prediction.chunk(len(made))
        predictions = branches if phase.unconditional_first else branches[::-1]
        run.trace.decisions.append(decision)
        phase.pending = dict(enumerate(predictions[1:]))
        return predictions[0]

    def single(self, run: Generation, phase: Phase, call: DenoiserCall) -> Tensor:
        """A step with one prediction, which stands for e_c; D is 0. Half and pipelined steps are segments of its one pass."""
        assert phase.policy is not None
        step = run.step - phase.first
        decision = phase.policy.plan(step)
        if decision.kind is StepKind.SKIP:
            run.trace.decisions.append(decision)
            return run.padded(phase.policy.skip(step).conditional)
        shared = call.holds_tensors is None
        segments = shared and self.placement.segments(call.rows) and self.placement.has_activations
        kind = decision.kind if segments else StepKind.FULL
        shifted = call.at(run.timestep) if decision.shift_time and kind is not StepKind.FULL else call
        if shared:
            prediction, run.output = self.placement.single_step(kind, shifted, run.step, decision.last)
        else:
            prediction, run.output = self.placement.unguided_step(call, False, shared)
        sampled = self.sampled(run, prediction, call)
        if decision.kind is StepKind.HALF:
            replaced: Branches | None = phase.policy.half(step, sampled)
        else:
            replaced = observe_single(phase.policy, step, sampled)
        run.trace.decisions.append(replace(decision, kind=kind, shift_time=shifted is not call))
        return prediction if replaced is None else run.padded(replaced.conditional)

    def sampled(self, run: Generation, prediction: Tensor, call: AnyCall) -> Tensor:
        """The channels of a prediction that the sampler uses."""
        channels = sampled_channels(prediction, call.model_input, self.pipeline.scheduler)
        run.dtype, run.unused_channels = prediction.dtype, prediction.shape[1] - channels
        return prediction[:, :channels]

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
        sampled = self.sampled(run, prediction, call)
        if decision.kind is StepKind.HALF:
            return run.padded(policy.half(step, sampled).doubled())
        unconditional, conditional = sampled.chunk(2)
        discrepancy = relative_mae(conditional, unconditional)
        run.trace.discrepancies[run.step] = discrepancy
        replaced = policy.full(step, Branches(conditional, conditional - unconditional), discrepancy)
        return prediction if replaced is None else run.padded(replaced.doubled())

    def _possible(self, decision: Decision, call: AnyCall) -> Decision:
        """The decision; a full step instead, where segments lack activations of one, or where its branches differ in shape."""
        lacking = decision.kind in SEGMENTED and not self.placement.has_activations
        if lacking or (decision.kind is StepKind.PIPELINED and not call.can_be_pipelined):
            return replace(decision, kind=StepKind.FULL, shift_time=False)
        return decision


def observe_single(policy: StepPolicy, step: int, prediction: Tensor) -> Branches | None:
    """Reports the one prediction of a full step without guidance."""
    nothing = prediction.new_zeros((len(prediction), *[1] * (prediction.ndim - 1)))
    return policy.full(step, Branches(prediction, nothing), nothing.flatten())
