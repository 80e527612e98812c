"""Cut plans: the blocks between which a class of denoisers can be cut, as data. Plans hold for subclasses too."""

from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import diffusers
from diffusers import PixArtTransformer2DModel, SanaTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch import nn

from hybridiff.errors import UsageError
from hybridiff.models.cuts.cut import Block

Plan = Callable[[Any], tuple[Block, ...] | None]


def chain(blocks: str) -> Plan:
    """The plan of a transformer whose blocks each read the output of the one before.

    Args:
        blocks: path of the module list in the denoiser, such as ``transformer_blocks``.
    """

    def plan(denoiser: Any) -> tuple[Block, ...]:
        paths = [f"{blocks}.{index}" for index in range(len(denoiser.get_submodule(blocks)))]
        return tuple(Block(path, tuple(paths[max(index - 1, 0) : index])) for index, path in enumerate(paths))

    return plan


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


_PLANS: dict[type, Plan] = {
    UNet2DConditionModel: unet_blocks,
    SD3Transformer2DModel: chain("transformer_blocks"),
    PixArtTransformer2DModel: chain("transformer_blocks"),
    SanaTransformer2DModel: chain("transformer_blocks"),
}


def register_plan(denoiser: type[nn.Module], plan: Plan) -> None:
    """Registers the cut plan of a denoiser class, so that groups of several ranks can run its half and pipelined steps.

    A block is a submodule that takes and returns tensors, or tuples of tensors and None, whose first dimension is the batch.
    Between two blocks the denoiser may only pass on outputs of blocks and what does not depend on them.

    Args:
        denoiser: class of the network; the plan holds for its subclasses too, unless they have their own.
        plan: function from the network to its blocks in order of execution, each with the blocks that it reads, such as
            ``chain("transformer_blocks")``; it may return None for networks that cannot be cut.
    """
    _PLANS[denoiser] = plan


def plan_of(denoiser: nn.Module) -> tuple[Block, ...] | None:
    """The blocks of a denoiser in order of execution; None if its class has no plan."""
    plan = next((_PLANS[kind] for kind in type(denoiser).__mro__ if kind in _PLANS), None)
    return None if plan is None else plan(denoiser)


def require_plan(denoiser: nn.Module) -> tuple[Block, ...]:
    """The blocks of a denoiser in order of execution.

    Raises:
        UsageError: the denoiser has no plan; lists the classes that have one.
    """
    blocks = plan_of(denoiser)
    if blocks is None:
        raise _unknown(type(denoiser).__name__)
    return blocks


def require_class(name: str) -> None:
    """Checks by the name of a Diffusers class that it has a plan, before any weights are loaded.

    Raises:
        UsageError: as ``require_plan``.
    """
    kind = getattr(diffusers, name, None) or next((known for known in _PLANS if known.__name__ == name), None)
    if not isinstance(kind, type) or not issubclass(kind, tuple(_PLANS)):
        raise _unknown(name)


def _unknown(name: str) -> UsageError:
    known = ", ".join(kind.__name__ for kind in _PLANS)
    return UsageError(
        f"the denoiser is a {name}, which has no plan where to cut it for half steps on several ranks; allowed: {known} (a U-Net"
        " with Stable Diffusion's blocks), a class with a plan of its own (hybridiff.models.cuts.register_plan), or a schedule"
        " without half steps: full, or adaptive with max_half_steps 0"
    )
