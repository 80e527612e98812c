"""What the calls of one step say about how a pipeline calls its denoiser in every step.

A pipeline may distinguish branches by more than the arguments: by objects that it changes between two calls, such as caches of
keys and values, or by hooks and adapters of the network, as guidance that skips layers does. Such calls cannot be made ahead.
"""

from enum import Enum
from itertools import combinations
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hybridiff.errors import UsageError
from hybridiff.models.families import family_of
from hybridiff.models.guidance import clamped_weight, fitted_weight, guidance_weight
from hybridiff.parallel.call import DenoiserCall, is_plain
from hybridiff.parallel.generation import Generation, Observed, Phase, Style
from hybridiff.parallel.notices import Notices
from hybridiff.parallel.placement import Placement
from hybridiff.parallel.steps import observe_single
from hybridiff.schedule import Branches, Full, Sampler, Schedule, StepPolicy, relative_mae

DEPTH = 6  # of the attributes of objects that are compared
SWAPPED = 0.5  # a fitted weight below it is nearer to 1 - w than to w, whatever w > 1 is: the branches are swapped


def can_be_made_ahead(calls: list[Observed]) -> bool:
    """Whether calls of one step differ in their prompts alone, in what they are given and in all that they depend on."""
    for one, other in combinations(calls, 2):
        shared = one.objects.keys() & other.objects.keys()
        if one.network != other.network or any(one.objects[key] != other.objects[key] for key in shared):
            return False
        if other.call.prompts_equal(one.call):  # what differs is not in the arguments
            return False
    return True


def object_states(call: DenoiserCall) -> dict[int, Any]:
    """The state of each argument of a call that is an object with state of its own, such as a cache, by identity."""
    return {id(leaf): _state(leaf) for leaf in tree_leaves((call.args, call.kwargs)) if not is_plain(leaf)}


def network_state(denoiser: nn.Module) -> Any:
    """What pipelines change in a network between two calls: hooks, attention processors, and adapters."""
    return [found for module in denoiser.modules() if (found := _module_state(vars(module)))]


def _module_state(attributes: dict[str, Any]) -> list[Any]:
    registry = attributes.get("_diffusers_hook")
    found: list[Any] = [] if registry is None else [tuple(registry.hooks)]
    found += [tuple(attributes[name]) for name in ("_forward_hooks", "_forward_pre_hooks") if attributes.get(name)]
    found += [id(attributes[name]) for name in ("processor", "forward") if name in attributes]
    return found + [
        _state(attributes[name]) for name in ("_active_adapter", "_disable_adapters", "scaling") if name in attributes
    ]


def _state(value: Any, depth: int = DEPTH) -> Any:
    """A value as plain data that can be compared: tensors and whatever lies deeper count by identity."""
    if isinstance(value, Enum) or (is_plain(value) and not isinstance(value, Tensor)):
        return value
    if isinstance(value, (Tensor, nn.Module)) or not depth:
        return id(value)
    if isinstance(value, dict):
        return {key: _state(item, depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_state(item, depth - 1) for item in value]
    return [id(value), _state(vars(value), depth - 1) if hasattr(value, "__dict__") else None]


def order_of_calls(first: Observed, second: Observed, after: Tensor, guess: bool) -> tuple[bool, Branches, float | None]:
    """The order of the two branches of a step that calls the denoiser on one after the other.

    Args:
        first: first call of the step.
        second: second call of the step.
        after: latents of the next step.
        guess: whether the order of calls without a name is inferred from what the sampler did; else the conditional one is first.

    Returns:
        Whether the unconditional branch is first; the predictions; and the fitted weight of guidance, None if unknown.
    """
    unconditional_first = first.name is not None and "uncond" in first.name
    conditional, unconditional = (second, first) if unconditional_first else (first, second)
    weight = fitted_weight(first.call.model_input, after, unconditional.prediction, conditional.prediction)
    unnamed = first.name is None or "cond" not in first.name
    if guess and unnamed and weight is not None and weight < SWAPPED:
        unconditional_first, weight = not unconditional_first, 1 - weight
        conditional, unconditional = unconditional, conditional
    branches = Branches(conditional.prediction, conditional.prediction - unconditional.prediction)
    return unconditional_first, branches, weight


def conditional_half_first(first: Observed, call: DenoiserCall) -> bool:
    """Whether the doubled batch of a step is [conditional, unconditional], by what the sampler did until the next step."""
    before, after, predictions = (tensor.chunk(2) for tensor in (first.call.model_input, call.model_input, first.prediction))
    weight = fitted_weight(before[0], after[0], *predictions)
    return weight is not None and weight < SWAPPED


def has_four_branches(first: Observed, call: DenoiserCall) -> bool:
    """Whether a batch that looks doubled is one batch four times, with prompts of its own each time."""
    half = call.rows // 2
    if half % 2 or not call.multiplied(first.prediction.shape[1], [4]):
        return False
    one, other = (call.part(range(start, start + half // 2)) for start in (0, half // 2))
    return not other.prompts_equal(one)


class StyleLearner:
    """Finds out how a pipeline calls its denoiser in the steps of a phase, and with which policy it is to be run.

    A pipeline that doubles its batch is known by its first call. One that calls its denoiser once per branch is known after its
    first step, whose calls are computed as they are.

    Args:
        pipeline: pipeline of the denoiser; read for guidance.
        schedule: schedule of all runs.
        placement: executes steps on the group.
        guidance_scale: guidance scale of all runs, for pipelines that do not report it.
        notices: warnings of the runs.
    """

    def __init__(
        self, pipeline: Any, schedule: Schedule, placement: Placement, guidance_scale: float | None, notices: Notices
    ) -> None:
        self._pipeline = pipeline
        self._schedule = schedule
        self._placement = placement
        self._guidance_scale = guidance_scale
        self._family = family_of(type(pipeline))
        self._notices = notices

    @property
    def is_guess(self) -> bool:
        """Whether the style of a run is inferred from its calls alone, and so may be inferred wrongly."""
        return self._family.calls == "learned" or self._family.may_end

    @property
    def counts_calls(self) -> bool:
        """Whether a further call at the same step of the sampler shows another branch: a known pipeline makes none."""
        return self._family.calls == "learned"

    @property
    def weight(self) -> float | None:
        """The weight of guidance in the present run, as of ``guidance_weight``."""
        return guidance_weight(self._pipeline) if self._guidance_scale is None else self._guidance_scale

    def restart(self, run: Generation, call: DenoiserCall, style: Style | None) -> Phase:
        """A new phase from this call on; its style is inferred from the call if None."""
        if run.phase is not None:
            self._placement.reset()
        if style is None:
            style = Style.DOUBLED if self._doubles(call) else Style.LEARNING
        phase = run.phase = Phase(style, run.step, call.rows, conditional_first=self._family.conditional_first)
        if style is Style.DOUBLED:
            assert run.sampler is not None
            phase.policy = self._policy(run.sampler.part(phase.first, self.weight or 1.0), phase)
        return phase

    def learn(self, run: Generation, phase: Phase, call: DenoiserCall) -> None:
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
            guided = (self.weight or 1.0) > 1
            if self._family.calls == "learned" and guided and call.multiplied(first.prediction.shape[1]):
                raise self._not_doubled()
            phase.style = Style.SINGLE
            halves = self._placement.segments(call.rows) and call.holds_tensors is None
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
        weight = self.weight
        self._observe_first(run, phase, clamped_weight(fitted) if weight is None or guess else weight, branches)

    def confirm(self, run: Generation, phase: Phase, call: DenoiserCall) -> Phase:
        """What the second step says of a batch that looked doubled in the first: its halves are equal still, and their order.

        Two images with the same noise look like a doubled batch too, and differ from the second step on.

        Returns:
            The phase, a new one where the batch is not a doubled one.

        Raises:
            UsageError: the batch has four branches.
        """
        first = phase.computed.pop()
        if not self.is_guess:
            return phase
        if not call.doubled():
            run.trace.discrepancies.pop(phase.first, None)
            return self.restart(run, call, Style.LEARNING)
        if self._family.calls != "learned":
            return phase
        if has_four_branches(first, call):
            raise self._not_doubled()
        if conditional_half_first(first, call):
            phase.conditional_first = True
            conditional, unconditional = first.prediction.chunk(2)
            self._placement.reset()
            self._observe_first(run, phase, self.weight or 1.0, Branches(conditional, conditional - unconditional))
        return phase

    def _observe_first(self, run: Generation, phase: Phase, weight: float, branches: Branches) -> None:
        """A new policy of the phase, with its first step observed."""
        assert run.sampler is not None
        phase.policy = self._policy(run.sampler.part(phase.first, weight), phase)
        run.trace.decisions[-1] = phase.policy.plan(0)
        discrepancy = relative_mae(branches.conditional, branches.conditional - branches.difference)
        run.trace.discrepancies[phase.first] = discrepancy
        phase.policy.full(0, branches, discrepancy)

    def _policy(self, sampler: Sampler, phase: Phase) -> StepPolicy:
        """A policy for the steps of a phase; full steps only where guidance changes too late for the schedule."""
        try:
            return self._schedule.begin(sampler)
        except UsageError:
            if phase.first == 0:
                raise
            return Full().begin(sampler)

    def _doubles(self, call: DenoiserCall) -> bool:
        """Whether a call is on a doubled batch. Synchronises with the device.

        Raises:
            UsageError: it is not, of a pipeline that doubles its batch for guidance.
        """
        weight = self.weight
        if self._family.calls == "branches" or weight is None or weight <= 1:
            return False
        if call.holds_tensors is not None:  # rows that cannot be distinguished: one prediction, of all of them
            return False
        if call.doubled():
            return True
        if self._family.calls == "learned" or self._family.may_end:
            return False
        raise self._not_doubled()

    def not_doubled_after_all(self, run: Generation, phase: Phase) -> None:
        """A second call in the first step shows a call per branch, whose equal rows looked like a doubled batch.

        Raises:
            UsageError: the pipeline is known to double its batch.
        """
        if self._family.calls == "doubled" or self._guidance_scale is not None:
            raise self._not_doubled()
        phase.style, phase.policy = Style.LEARNING, None
        run.trace.discrepancies.pop(phase.first, None)
        self._placement.reset()

    def _not_doubled(self) -> UsageError:
        name = type(self._pipeline).__name__
        if self._guidance_scale is not None:
            return UsageError(
                f"guidance_scale is {self._guidance_scale!r} for parallelize, and {name} does not double its batch for guidance; "
                "allowed: the guidance_scale that it is called with, of pipelines that double the batch"
            )
        return UsageError(
            f"{name} calls its denoiser neither on one batch twice nor once per guidance branch (it may have three branches);"
            " allowed: pipelines with a conditional and an unconditional branch, or without guidance, whose classes are described"
            " by hybridiff.models.families.register_family where they are taken for others"
        )
