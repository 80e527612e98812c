"""The denoiser of a pipeline, and the inputs of its calls."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from hybridiff.errors import UsageError
from hybridiff.models.families import ROW_AXES


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
        UsageError: the first argument, or hidden_states or sample, is neither a tensor nor a list of equally large tensors.
    """
    latents = raw_latents(args, kwargs)
    if isinstance(latents, list) and latents and len({getattr(latent, "shape", None) for latent in latents}) == 1:
        return torch.stack(latents)
    if not isinstance(latents, Tensor):
        given = "nothing" if latents is None else f"a {type(latents).__name__}"
        raise UsageError(
            f"the denoiser is called with {given} as latents; allowed: a tensor (batch, ...), or a list of images of one size"
        )
    return latents


def count_rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """The rows of a denoiser call's batch. Raises as ``model_input`` does."""
    latents = raw_latents(args, kwargs)
    return len(latents if isinstance(latents, list) else model_input(args, kwargs))


def with_model_input(args: tuple[Any, ...], kwargs: dict[str, Any], latents: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a denoiser call with other latents."""
    if args:
        return (latents, *args[1:]), kwargs
    name = "hidden_states" if "hidden_states" in kwargs else "sample"
    return args, kwargs | {name: latents}


def raw_latents(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The latents as a denoiser is given them: a tensor, or a list of one tensor per row."""
    return args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))


TIMESTEPS = ("timestep", "timesteps")  # names of the timestep in denoisers' forwards


def batched_tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors of a denoiser call that have a batch axis, at any depth, in order."""
    found: list[Any] = []
    map_batched(found.append, args, kwargs)
    yield from tensors_in(found)


def map_batched(
    function: Callable[[Any], Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a denoiser call with each one that has a batch axis replaced by the function's result.

    These are the tensors with as many rows as the latents, at any depth, but for arguments that ``ROW_AXES`` describes: the first
    dimension of position encodings is the number of tokens, which may be equal to the number of rows. Where the latents are a
    list with one tensor per row, so are the prompts.

    Args:
        function: called with each tensor (rows, ...) or list of rows.
        args: positional arguments.
        kwargs: keyword arguments.
    """
    latents = raw_latents(args, kwargs)
    rows, listed = count_rows(args, kwargs), isinstance(latents, list)

    def replaced(value: Any, axis: int | None = 0) -> Any:
        if axis is None:
            return value
        if listed and isinstance(value, list) and len(value) == rows:
            return function(value)
        return map_tensors(lambda tensor: _at_axis(function, tensor, axis) if _rows(tensor, axis) == rows else tensor, value)

    return tuple(map(replaced, args)), {name: replaced(value, ROW_AXES.get(name, 0)) for name, value in kwargs.items()}


def _rows(tensor: Tensor, axis: int) -> int | None:
    return tensor.shape[axis] if -tensor.ndim <= axis < tensor.ndim else None


def _at_axis(function: Callable[[Any], Any], tensor: Tensor, axis: int) -> Any:
    if axis == 0:
        return function(tensor)
    result = function(tensor.movedim(axis, 0))
    return result.movedim(0, axis) if isinstance(result, Tensor) and result.ndim == tensor.ndim else result


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """The same dicts, lists and tuples with each tensor replaced by the function's result, at any depth."""
    return tree_map_only(Tensor, function, value)


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in dicts, lists and tuples, at any depth, in order."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
