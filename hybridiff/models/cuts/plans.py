"""Which denoisers can be cut, and into what: a plan for each class, which holds for its subclasses too."""

from collections.abc import Callable
from typing import Any

import diffusers
from diffusers import PixArtTransformer2DModel, SanaTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch import nn

from hybridiff.errors import UsageError
from hybridiff.models.cuts.cut import Atom
from hybridiff.models.cuts.unet import unet_atoms


def chain(blocks: str) -> Callable[[Any], tuple[Atom, ...]]:
    """The plan of transformers whose blocks, a module list of that path, each read the output of the one before."""

    def atoms(denoiser: Any) -> tuple[Atom, ...]:
        paths = [f"{blocks}.{index}" for index in range(len(denoiser.get_submodule(blocks)))]
        return tuple(Atom(path, tuple(paths[max(index - 1, 0) : index])) for index, path in enumerate(paths))

    return atoms


_PLANS: dict[type, Callable[[Any], tuple[Atom, ...] | None]] = {
    UNet2DConditionModel: unet_atoms,
    SD3Transformer2DModel: chain("transformer_blocks"),
    PixArtTransformer2DModel: chain("transformer_blocks"),
    SanaTransformer2DModel: chain("transformer_blocks"),
}


def plan_of(denoiser: nn.Module) -> tuple[Atom, ...] | None:
    """The submodules that a denoiser can be cut between, in order of execution; None if its class or its blocks are unknown."""
    return next((plan(denoiser) for kind, plan in _PLANS.items() if isinstance(denoiser, kind)), None)


def require_plan(denoiser: nn.Module) -> tuple[Atom, ...]:
    """The plan of a denoiser.

    Raises:
        UsageError: there is none; says which classes have one and what a plan needs.
    """
    atoms = plan_of(denoiser)
    if atoms is None:
        raise _unknown(type(denoiser).__name__)
    return atoms


def require_class(name: str) -> None:
    """Refuses a denoiser by the name of its Diffusers class, before it is loaded.

    Raises:
        UsageError: as ``require_plan``.
    """
    kind = getattr(diffusers, name, None)
    if not isinstance(kind, type) or not issubclass(kind, tuple(_PLANS)):
        raise _unknown(name)


def _unknown(name: str) -> UsageError:
    known = ", ".join(kind.__name__ for kind in _PLANS)
    return UsageError(
        f"the denoiser is a {name}, and it is not known where that can be cut for half steps on several ranks; allowed: {known}"
        " (a U-Net with Stable Diffusion's blocks), or another once it has a plan: its blocks in order of execution, and which"
        " blocks' outputs each of them reads; without half steps (schedule full, or adaptive with max_half_steps 0) any is"
    )
