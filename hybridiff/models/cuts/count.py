"""What each atom of a denoiser costs and how much it puts out, counted on the meta device: no weights, no arithmetic."""

from typing import Any

import torch
from torch import Tensor, nn

from hybridiff.errors import UsageError
from hybridiff.models.cuts.cut import Atom
from hybridiff.models.cuts.meta import FlopCount
from hybridiff.models.inputs import map_tensors, model_input, tensors_in


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
    rows = len(model_input(args, kwargs))
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
        elements[path] = sum(tensor.numel() for tensor in tensors_in(output))

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)


def one_row(given: Any, rows: int) -> Any:
    """One row of every tensor that has as many as the batch, at any depth, on the meta device and in fp32 unless integer."""

    def shape(tensor: Tensor) -> Tensor:
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        batched = tensor.ndim > 0 and len(tensor) == rows
        return torch.empty((1, *tensor.shape[1:]) if batched else tensor.shape, dtype=dtype, device="meta")

    return map_tensors(shape, given)
