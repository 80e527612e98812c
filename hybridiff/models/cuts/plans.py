"""Cut plans: the blocks between which a class of denoisers can be cut, as data. Plans hold for subclasses too."""

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import diffusers
from torch import nn

from hybridiff.errors import UsageError
from hybridiff.models.cuts.cut import Block

CutPlan = Callable[[Any], tuple[Block, ...] | None]


def chain(*lists: str) -> CutPlan:
    """The plan of a transformer whose blocks each read the output of the one before.

    Args:
        lists: paths of the module lists in the denoiser, in order of execution, such as ``transformer_blocks``.
    """
    return lambda denoiser: _row(_paths(denoiser, *lists))


def long_skips(blocks: str) -> CutPlan:
    """The plan of a transformer whose blocks in the second half, but for its first one, also read their opposite's output.

    Args:
        blocks: path of the module list in the denoiser.
    """

    def plan(denoiser: Any) -> tuple[Block, ...]:
        row = _row(_paths(denoiser, blocks))
        half, last = len(row) // 2, len(row) - 1
        return tuple(Block(block.path, (*block.inputs, row[last - i].path)) if i > half else block for i, block in enumerate(row))

    return plan


def joined(*branches: str, layers: str) -> CutPlan:
    """The plan of a transformer with several chains, of image and text tokens, whose outputs are the input of one more chain.

    Args:
        branches: paths of the module lists in the denoiser, one per chain, in order of execution.
        layers: path of the module list of the chain that reads them.
    """

    def plan(denoiser: Any) -> tuple[Block, ...]:
        rows = [_row(_paths(denoiser, branch)) for branch in branches]
        ends = tuple(row[-1].path for row in rows if row)
        return (*(block for row in rows for block in row), *_row(_paths(denoiser, layers), ends))

    return plan


def _paths(denoiser: Any, *lists: str) -> list[str]:
    return [f"{name}.{index}" for name in lists for index in range(len(denoiser.get_submodule(name)))]


def _row(paths: Sequence[str], inputs: tuple[str, ...] = ()) -> tuple[Block, ...]:
    """Blocks that each read the one before; the first one reads ``inputs``."""
    return tuple(Block(path, (paths[index - 1],) if index else inputs) for index, path in enumerate(paths))


_UNET_BLOCKS = {
    "DownBlock2D",
    "CrossAttnDownBlock2D",
    "UpBlock2D",
    "CrossAttnUpBlock2D",
    "UNetMidBlock2DCrossAttn",
    "UNetMidBlock2D",
}


def unet_blocks(unet: Any) -> tuple[Block, ...] | None:
    """The plan of a UNet2DConditionModel of any depth: its ResNet and attention layers in order, with the skip connections.

    Returns:
        The blocks; None if the network has block types other than Stable Diffusion's.
    """
    middle = [("mid_block", unet.mid_block)] if unet.mid_block is not None else []
    down, up = ([(f"{name}.{i}", b) for i, b in enumerate(unet.get_submodule(name))] for name in ("down_blocks", "up_blocks"))
    if any(type(block).__name__ not in _UNET_BLOCKS for _, block in (*down, *middle, *up)):
        return None
    blocks = [Block("conv_in", ())]
    residuals = ["conv_in"]

    def add(paths: list[str], *skips: str) -> None:
        for index, path in enumerate(paths):
            blocks.append(Block(path, (blocks[-1].path, *(skips if index == 0 else ()))))

    for name, block in down:
        for layer in (*_layers(name, block), _samplers(name, "downsamplers", block)):
            add(layer)
            residuals += layer[-1:]
    for name, block in middle:
        for layer in _layers(name, block):
            add(layer)
    for name, block in up:
        for layer in _layers(name, block):
            add(layer, residuals.pop())
        add(_samplers(name, "upsamplers", block))
    add([path for path in ("conv_norm_out", "conv_out") if getattr(unet, path) is not None])
    return tuple(blocks)


def _layers(name: str, block: Any) -> list[list[str]]:
    """Paths of each ResNet layer of a U-Net block, with the attention layer after it where there is one."""
    attentions = [f"{name}.attentions.{i}" for i, layer in enumerate(getattr(block, "attentions", ())) if layer is not None]
    resnets = [f"{name}.resnets.{i}" for i in range(len(block.resnets))]
    return [[path for path in layer if path] for layer in zip_longest(resnets, attentions)]


def _samplers(name: str, kind: str, block: Any) -> list[str]:
    return [f"{name}.{kind}.{i}" for i in range(len(getattr(block, kind) or ()))]


_DIFFUSERS: dict[str, CutPlan] = {  # by the names of Diffusers' classes, which are imported only where they are in use
    "UNet2DConditionModel": unet_blocks,
    "SD3Transformer2DModel": chain("transformer_blocks"),
    "PixArtTransformer2DModel": chain("transformer_blocks"),
    "SanaTransformer2DModel": chain("transformer_blocks"),
    "AuraFlowTransformer2DModel": chain("joint_transformer_blocks", "single_transformer_blocks"),
    "HunyuanDiT2DModel": long_skips("blocks"),
    "CogView3PlusTransformer2DModel": chain("transformer_blocks"),
    "LuminaNextDiT2DModel": chain("layers"),
    "BriaTransformer2DModel": chain("transformer_blocks", "single_transformer_blocks"),
    "FluxTransformer2DModel": chain("transformer_blocks", "single_transformer_blocks"),
    "Flux2Transformer2DModel": chain("transformer_blocks", "single_transformer_blocks"),
    "QwenImageTransformer2DModel": chain("transformer_blocks"),
    "ZImageTransformer2DModel": joined("noise_refiner", "context_refiner", layers="layers"),
    "ChromaTransformer2DModel": chain("transformer_blocks", "single_transformer_blocks"),
    "HiDreamImageTransformer2DModel": chain("double_stream_blocks", "single_stream_blocks"),
}
_REGISTERED: dict[type, CutPlan] = {}


def register_plan(denoiser: type[nn.Module], plan: CutPlan) -> None:
    """Registers the cut plan of a denoiser class, so that groups of several ranks can run its half and pipelined steps.

    A block is a submodule that takes and returns tensors, or tuples of tensors and None, whose first dimension is the batch.
    Between two blocks the denoiser may only pass on outputs of blocks and what does not depend on them.

    Args:
        denoiser: class of the network; the plan holds for its subclasses too, unless they have their own.
        plan: function from the network to its blocks in order of execution, each with the blocks that it reads, such as
            ``chain("transformer_blocks")``; it may return None for networks that cannot be cut.
    """
    _REGISTERED[denoiser] = plan


def plan_of(denoiser: nn.Module) -> tuple[Block, ...] | None:
    """The blocks of a denoiser in order of execution; None if its class has no plan."""
    plan = _plan(type(denoiser))
    return None if plan is None else plan(denoiser)


def _plan(kind: type) -> CutPlan | None:
    """The plan of a class or of the nearest of its base classes that has one."""
    for base in kind.__mro__:
        stock = _DIFFUSERS.get(base.__name__) if base.__module__.startswith("diffusers.") else None
        if (plan := _REGISTERED.get(base, stock)) is not None:
            return plan
    return None


def require_plan(denoiser: nn.Module) -> tuple[Block, ...]:
    """The blocks of a denoiser in order of execution.

    Raises:
        UsageError: the denoiser has no plan; lists the classes that have one.
    """
    blocks = plan_of(denoiser)
    if blocks is None:
        raise no_plan(type(denoiser).__name__)
    return blocks


def has_plan(name: str) -> bool:
    """Whether a class, of Diffusers or registered, has a plan by its name, so that no weights need to be loaded to know it."""
    kind = getattr(diffusers, name, None) or next((known for known in _REGISTERED if known.__name__ == name), None)
    return isinstance(kind, type) and _plan(kind) is not None


def no_plan(name: str, user: str = "segments") -> UsageError:
    """The error of a denoiser that cannot be cut.

    Args:
        name: name of the denoiser's class.
        user: what needs the plan, such as a schedule.
    """
    known = ", ".join((*_DIFFUSERS, *(kind.__name__ for kind in _REGISTERED)))
    return UsageError(
        f"the denoiser is a {name}, which has no plan where to cut it for half and pipelined steps on several ranks, and {user}"
        " cannot do without; allowed: a schedule that can (adaptive, full), a group of 1, a class with a plan of its own"
        f" (hybridiff.models.cuts.register_plan), a U-Net with Stable Diffusion's blocks, or one of {known}"
    )
