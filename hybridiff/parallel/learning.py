"""What the calls of one step say about how a pipeline calls its denoiser in every step.

A pipeline may tell its branches apart by more than the arguments: by objects that it changes between two calls, such as caches of
keys and values, or by hooks and adapters of the network, as guidance that skips layers does. Such calls cannot be made ahead.
"""

from dataclasses import dataclass
from enum import Enum
from itertools import combinations
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hybridiff.parallel.call import DenoiserCall, is_plain

DEPTH = 6  # of the attributes of objects that are compared


@dataclass(frozen=True)
class Observed:
    """One call of a step that is learned from.

    Args:
        name: name of the branch, where the pipeline announces it by ``cache_context``.
        call: the call.
        prediction: its prediction, (rows, ...).
        objects: state of its arguments that are objects, at the time of the call, by identity.
        network: state of the network at the time of the call.
    """

    name: str | None
    call: DenoiserCall
    prediction: Tensor
    objects: dict[int, Any]
    network: Any


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
