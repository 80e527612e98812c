"""The denoiser of a pipeline, and what it is called with."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from hybridiff.errors import UsageError


def denoiser_name(pipeline: Any) -> str:
    """The attribute in which a pipeline keeps the network that it calls in each step: unet or transformer.

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
    """The noisy latents (rows, channels, height, width) of a denoiser's call: its first argument, or given by name."""
    given = args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))
    assert isinstance(given, Tensor), "the denoiser is called without a model input"
    return given


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """The same dicts, lists and tuples with another value for each tensor, at any depth."""
    return tree_map_only(Tensor, function, value)


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in dicts, lists and tuples, at any depth and in order."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
