"""The plan of U-Nets: ResNet and attention layers one by one, in order of execution, with the skip connections between them."""

from itertools import zip_longest
from typing import Any

from hybridiff.models.cuts.cut import Atom

_BLOCKS = {"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D", "UNetMidBlock2DCrossAttn", "UNetMidBlock2D"}


def unet_atoms(unet: Any) -> tuple[Atom, ...] | None:
    """Atoms of a UNet2DConditionModel of any depth; None if it has blocks other than those of Stable Diffusion."""
    middle = [("mid_block", unet.mid_block)] if unet.mid_block is not None else []
    down, up = ([(f"{name}.{i}", b) for i, b in enumerate(unet.get_submodule(name))] for name in ("down_blocks", "up_blocks"))
    if any(type(block).__name__ not in _BLOCKS for _, block in (*down, *middle, *up)):
        return None
    atoms = [Atom("conv_in", ())]
    residuals = ["conv_in"]

    def add(paths: list[str], *skips: str) -> None:
        for index, path in enumerate(paths):
            atoms.append(Atom(path, (atoms[-1].path, *(skips if index == 0 else ()))))

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
    return tuple(atoms)


def _layers(name: str, block: Any) -> list[list[str]]:
    """Paths of each ResNet layer of a block and of the attention layer after it, where there is one."""
    attentions = [f"{name}.attentions.{i}" for i, layer in enumerate(getattr(block, "attentions", ())) if layer is not None]
    resnets = [f"{name}.resnets.{i}" for i in range(len(block.resnets))]
    return [[path for path in layer if path] for layer in zip_longest(resnets, attentions)]


def _samplers(name: str, kind: str, block: Any) -> list[str]:
    return [f"{name}.{kind}.{i}" for i in range(len(getattr(block, kind) or ()))]
