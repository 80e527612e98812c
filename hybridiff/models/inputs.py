"""The denoiser of a pipeline, and the inputs of its calls."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from hybridiff.errors import UsageError

LATENTS = ("hidden_states", "sample", "x")  # names of the latents in denoisers' forwards, where they are no first argument
TIMESTEPS = ("timestep", "timesteps", "t")  # names of the timestep


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
    """The noisy latents of a denoiser call, (rows, channels, height, width) or (rows, tokens, channels).

    Raises:
        UsageError: the first argument, or one of ``LATENTS``, is neither a tensor nor a list of equally large tensors.
    """
    latents = raw_latents(args, kwargs)
    if isinstance(latents, list) and latents and len({getattr(latent, "shape", None) for latent in latents}) == 1:
        return torch.stack(latents)
    if not isinstance(latents, Tensor):
        given = "nothing" if latents is None else f"a {type(latents).__name__}"
        raise UsageError(
            f"the denoiser is called with {given} as latents; allowed: a tensor (batch, ...), or a list of images of one size, "
            f"as its first argument or named {' or '.join(LATENTS)}"
        )
    return latents


def count_rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """The rows of a denoiser call's batch. Raises as ``model_input`` does."""
    latents = raw_latents(args, kwargs)
    return len(latents if isinstance(latents, list) else model_input(args, kwargs))


def with_model_input(args: tuple[Any, ...], kwargs: dict[str, Any], latents: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a denoiser call with other latents."""
    name = latents_name(args, kwargs)
    return ((latents, *args[1:]), kwargs) if name is None else (args, kwargs | {name: latents})


def raw_latents(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The latents as a denoiser is given them: a tensor, or a list of one tensor per row."""
    name = latents_name(args, kwargs)
    return kwargs[name] if name is not None else args[0] if args else None


def latents_name(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """The name of the latents in a denoiser call; None where they come first, or there are none."""
    return None if args else next((name for name in LATENTS if name in kwargs), None)


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """The same dicts, lists and tuples with each tensor replaced by the function's result, at any depth."""
    return tree_map_only(Tensor, function, value)


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in dicts, lists and tuples, at any depth, in order."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
