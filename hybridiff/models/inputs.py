"""The denoiser of a pipeline, and the inputs of its calls."""

from collections.abc import Callable, Iterator
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


UNBATCHED = frozenset({"image_rotary_emb", "freqs_cis", "img_ids", "txt_ids"})  # position encodings, shared by all rows
TIMESTEPS = ("timestep", "timesteps")  # names of the timestep in denoisers' forwards


def batched_tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors of a denoiser call that have a batch axis, at any depth, in order."""
    found: list[Tensor] = []
    map_batched(found.append, args, kwargs)
    yield from found


def map_batched(
    function: Callable[[Tensor], Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a denoiser call with each tensor that has a batch axis replaced by the function's result.

    These are the tensors with as many rows as the latents, at any depth, but for position encodings: their first dimension is the
    number of tokens, which may be equal to the number of rows.

    Args:
        function: called with each tensor (rows, ...).
        args: positional arguments.
        kwargs: keyword arguments.
    """
    rows = len(model_input(args, kwargs))

    def replaced(value: Any) -> Any:
        return map_tensors(lambda tensor: function(tensor) if tensor.ndim and len(tensor) == rows else tensor, value)

    return replaced(args), {name: value if name in UNBATCHED else replaced(value) for name, value in kwargs.items()}


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """The same dicts, lists and tuples with each tensor replaced by the function's result, at any depth."""
    return tree_map_only(Tensor, function, value)


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in dicts, lists and tuples, at any depth, in order."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
