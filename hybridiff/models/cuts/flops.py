"""FLOPs and output sizes of a denoiser's blocks, counted on the meta device: no weights are read and nothing is computed."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from hybridiff.errors import UsageError
from hybridiff.models.cuts.cut import Block
from hybridiff.models.inputs import map_tensors, tensors_in
from hybridiff.models.row_axes import RowAxes


def count_blocks(
    denoiser: nn.Module, blocks: tuple[Block, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[int], list[int]]:
    """FLOPs and output elements of each block, for one batch row of a call of the denoiser.

    Args:
        denoiser: network with a ``config``, which is rebuilt on the meta device.
        blocks: blocks in order of execution.
        args: positional arguments of the call; only shapes are read.
        kwargs: keyword arguments of the call; only shapes are read.

    Raises:
        UsageError: the call does not run all blocks once and in order.
    """
    return count_row(denoiser, blocks, *one_row(denoiser, args, kwargs))


@torch.no_grad()
def count_row(
    denoiser: nn.Module, blocks: tuple[Block, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[int], list[int]]:
    """The blocks of ``count_blocks`` for a call of one row whose tensors are on the meta device."""
    flops: dict[str, int] = {}
    elements: dict[str, int] = {}
    counter = FlopCount()
    twin = meta_twin(denoiser)
    for block in blocks:
        _watch(twin.get_submodule(block.path), block.path, counter, flops, elements)
    with counter:  # outside of the device context, which makes each call 50 % slower
        twin(*args, **kwargs)
    if list(elements) != [block.path for block in blocks]:
        raise UsageError(f"the call of {type(denoiser).__name__} skips blocks; allowed: calls that run all of them in order")
    return list(flops.values()), list(elements.values())


def meta_twin(denoiser: Any) -> Any:
    """A network of the same configuration on the meta device, whose operators do not depend on the values of tensors."""
    with torch.device("meta"):
        twin = type(denoiser).from_config(denoiser.config).eval()
    for module in twin.modules():
        for name, stand_in in _STAND_INS.get(type(module).__name__, {}).items():
            setattr(module, name, partial(stand_in, module))
    return twin


def _active_experts(layer: Any, tokens: Tensor, *_: Tensor) -> Tensor:
    """The work of a mixture of experts: each token through as many of them as are active, whichever they are."""
    outputs: list[Tensor] = [expert(tokens) for expert in layer.experts[: layer.num_activated_experts]]
    return outputs[-1]


_STAND_INS: dict[str, dict[str, Callable[..., Any]]] = {  # by class and method: those that read values, which meta tensors lack
    "MOEFeedForwardSwiGLU": {"moe_infer": _active_experts},  # of HiDream
    "HiDreamImageTransformer2DModel": {"unpatchify": lambda _, tokens, *sizes: tokens},
}


def _watch(module: nn.Module, path: str, counter: "FlopCount", flops: dict[str, int], elements: dict[str, int]) -> None:
    def before(*_: Any) -> None:
        flops[path] = counter.total

    def after(_module: nn.Module, _args: Any, output: Any) -> None:
        flops[path] = counter.total - flops[path]
        elements[path] = sum(tensor.numel() for tensor in tensors_in(output))

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)


def one_row(denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's arguments with one batch row, as meta tensors; floating-point ones in fp32."""

    def meta(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=torch.float32 if tensor.is_floating_point() else tensor.dtype, device="meta")

    one: tuple[tuple[Any, ...], dict[str, Any]] = map_tensors(
        meta, RowAxes.of(denoiser).map_rows(lambda rows: rows[:1], args, kwargs)
    )
    return one


class FlopCount(TorchDispatchMode):
    """Counts the FLOPs of all operators called within, by torch's own formulas.

    Meta kernels run in Python, and networks repeat their layers, so results are cached by operator and shapes. This is 3 to 5
    times as fast as torch's FlopCounterMode, with equal sums.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self._seen: dict[Any, tuple[Any, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(argument.alias_info for argument in func._schema.arguments):  # views and in-place operators
            return func(*args, **kwargs)
        key = (func, _signature(args), _signature(kwargs))
        if key in self._seen:
            output, flops = self._seen[key]
            self.total += flops
            return tree_map_only(Tensor, torch.empty_like, output)
        output = func(*args, **kwargs)
        formula = flop_registry.get(func.overloadpacket)
        flops = formula(*args, **kwargs, out_val=output) if formula else 0
        self.total += flops
        if all(leaf.is_meta for leaf in tree_leaves(output) if isinstance(leaf, Tensor)):
            self._seen[key] = output, flops
        return output


def _signature(given: Any) -> Any:
    """A hashable key of all that an operator's output on the meta device depends on."""
    if isinstance(given, Tensor):
        return given.shape, given.stride(), given.dtype, given.device
    if isinstance(given, (list, tuple)):
        return tuple(map(_signature, given))
    if isinstance(given, dict):
        return tuple((key, _signature(value)) for key, value in given.items())
    return type(given), given
