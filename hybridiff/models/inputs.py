"""The denoiser of a pipeline, and the inputs of its calls."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from hybridiff.errors import UsageError


def denoiser_name(pipeline: Any) -> str:
    """The attribute that holds the network called in each step: unet or transformer.

    Raises:
        UsageError: there is none, or more than one.
    """
    found = [name for name in ("unet", "transformer") if getattr(pipeline, name, None) is not None]
    if len(found) != 1 or not isinstance(getattr(pipeline, found[0]), nn.Module):
        name = type(pipeline).__name__
        raise UsageError(f"{name} has no single denoiser; allowed: a Diffusers pipeline with either a unet or a transformer")
    return found[0]


def find_denoiser(pipeline: Any) -> nn.Module:
    """The network that a pipeline calls in each step. Raises as ``denoiser_name`` does."""
    denoiser: nn.Module = getattr(pipeline, denoiser_name(pipeline))
    return denoiser


def model_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The noisy latents of a denoiser call, (rows, channels, height, width): its first argument, hidden_states or sample.

    Raises:
        UsageError: there are none, or they are not a tensor, such as Z-Image's list of latents.
    """
    latents = args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))
    if not isinstance(latents, Tensor):
        given = "nothing" if latents is None else f"a {type(latents).__name__}"
        raise UsageError(f"the denoiser is called with {given} as latents; allowed: a tensor (batch, ...)")
    return latents


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """The same dicts, lists and tuples with each tensor replaced by the function's result, at any depth."""
    return tree_map_only(Tensor, function, value)


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in dicts, lists and tuples, at any depth, in order."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
