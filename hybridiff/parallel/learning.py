"""What the calls of one step say about how a pipeline calls its denoiser in every step.

A pipeline may tell its branches apart by more than the arguments: by objects that it changes between two calls, such as caches of
keys and values, or by hooks and adapters of the network, as guidance that skips layers does. Such calls cannot be made ahead.
"""

from enum import Enum
from itertools import combinations
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hybridiff.models.guidance import fitted_weight
from hybridiff.parallel.call import DenoiserCall, is_plain
from hybridiff.parallel.generation import Observed
from hybridiff.schedule import Branches

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
        guess: whether the order of calls without a name is told by what the sampler did; else the conditional one is first.

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
