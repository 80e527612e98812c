"""What each atom of a denoiser costs and how much it puts out, counted on the meta device: no weights, no arithmetic."""

from typing import Any

import torch
from torch import Tensor, nn

from hybridiff.config import UsageError
from hybridiff.models.cuts.cut import Atom
from hybridiff.models.cuts.meta import FlopCount


@torch.no_grad()
def count(
    denoiser: nn.Module, atoms: tuple[Atom, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[int], list[int]]:
    """FLOPs and output elements of each atom, for one batch row of a call of the denoiser.

    Raises:
        UsageError: this call does not run all atoms once and in order.
    """
    flops: dict[str, int] = {}
    elements: dict[str, int] = {}
    counter = FlopCount()
    kind: Any = type(denoiser)
    with torch.device("meta"):
        twin = kind.from_config(denoiser.config).eval()
    for atom in atoms:
        _watch(twin.get_submodule(atom.path), atom.path, counter, flops, elements)
    rows = rows_of(args, kwargs)
    with counter:  # outside the device's context, which would make each call slower by half
        twin(*one_row(args, rows), **one_row(kwargs, rows))
    if list(elements) != [atom.path for atom in atoms]:
        raise UsageError(f"the call of {type(denoiser).__name__} skips blocks; allowed: calls that run all of them in order")
    return list(flops.values()), list(elements.values())


def _watch(module: nn.Module, path: str, counter: FlopCount, flops: dict[str, int], elements: dict[str, int]) -> None:
    def before(*_: Any) -> None:
        flops[path] = counter.total

    def after(_module: nn.Module, _args: Any, output: Any) -> None:
        flops[path] = counter.total - flops[path]
        elements[path] = sum(tensor.numel() for tensor in tensors_of(output))

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)


def tensors_of(output: Any) -> list[Tensor]:
    """The tensors of an atom's output: of one tensor, or of a tuple of tensors and Nones."""
    return [part for part in (output if isinstance(output, tuple) else (output,)) if part is not None]


def rows_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Batch rows of a call: of its latents, which come first or are named ``sample`` or ``hidden_states``."""
    latents = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
    assert isinstance(latents, Tensor), "a denoiser is called with its latents first or by name"
    return len(latents)


def one_row(given: Any, rows: int) -> Any:
    """One row of every tensor that has as many as the batch, at any depth, on the meta device and in fp32 unless integer."""
    if isinstance(given, Tensor):
        dtype = torch.float32 if given.is_floating_point() else given.dtype
        batched = given.ndim > 0 and len(given) == rows
        return torch.empty((1, *given.shape[1:]) if batched else given.shape, dtype=dtype, device="meta")
    if isinstance(given, dict):
        return {key: one_row(value, rows) for key, value in given.items()}
    if isinstance(given, (list, tuple)):
        return type(given)(one_row(value, rows) for value in given)
    return given
