"""How pipelines call their denoiser, as data about their classes (Diffusers 0.42).

A class without an entry, nor one by ``register_family``, is learned from its first step: a batch of two equal halves is a doubled
one, a second call with the same latents and timestep is a second branch.
"""

from dataclasses import dataclass
from typing import Literal

Calls = Literal["doubled", "branches", "learned"]
Latents = Literal["scale", "shift", "channels"]


@dataclass(frozen=True)
class Family:
    """How the pipelines of a class call their denoiser in a step.

    Args:
        calls: ``doubled``: once, on both guidance branches of each image; ``branches``: once per branch, so a single time where
            guidance is off or distilled into the network; ``learned``: unknown.
        conditional_first: whether a doubled batch is [conditional, unconditional].
        scale: attribute of the pipeline with its guidance scale; None where none has it, and it is learned from the first step.
        scale_offset: difference of the guidance weight w to that scale: 1 where the formula is e_c + s (e_c - e_u).
        may_end: whether guidance may end in mid-run while the pipeline still reports it.
        decodes: whether latents are decoded by the pipeline's own call, as they are packed or normalised in a way of its own.
        latents: what the pipeline undoes before it decodes, where the autoencoder has it: ``scale``, ``shift`` (the scale and a
            shift of all latents), or ``channels`` (the scale, and mean and standard deviation of each channel).
        packed: side of the squares of latents that heights and widths are multiples of, where the pipeline makes them tokens by
            itself; None where the denoiser's patch size says it.
        pixels: default height and width where the denoiser's configuration does not say it.
    """

    calls: Calls = "learned"
    conditional_first: bool = False
    scale: str | None = "guidance_scale"
    scale_offset: float = 0.0
    may_end: bool = False
    decodes: bool = True
    latents: Latents = "scale"
    packed: int | None = None
    pixels: int | None = None


_DOUBLED = Family("doubled", decodes=False)
_SHIFTED = Family("doubled", decodes=False, latents="shift")
_CONDITIONAL_FIRST = Family("doubled", conditional_first=True, decodes=False)
_UNREPORTED = Family("doubled", scale=None, decodes=False)
_PACKED_DOUBLED = Family("doubled", packed=2, pixels=1024)
_BRANCHES = Family("branches")
_PACKED = Family("branches", packed=2, pixels=1024)
_UNKNOWN_SCALE = Family("branches", scale=None, packed=2, pixels=1024)

FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": _DOUBLED,
    "StableDiffusionXLPipeline": Family("doubled", decodes=False, latents="channels"),
    "StableDiffusion3Pipeline": _SHIFTED,
    "KolorsPipeline": _DOUBLED,
    "PixArtAlphaPipeline": _UNREPORTED,
    "PixArtSigmaPipeline": _UNREPORTED,
    "SanaPipeline": _DOUBLED,
    "AuraFlowPipeline": _DOUBLED,
    "HunyuanDiTPipeline": _DOUBLED,
    "CogView3PlusPipeline": _DOUBLED,
    "BriaPipeline": _PACKED_DOUBLED,
    "BriaFiboPipeline": _PACKED_DOUBLED,
    "HiDreamImagePipeline": Family("doubled", decodes=False, latents="shift", pixels=1024),
    "ErnieImagePipeline": _PACKED_DOUBLED,
    "PRXPipeline": _SHIFTED,
    "LuminaPipeline": _CONDITIONAL_FIRST,
    "StableCascadePriorPipeline": _CONDITIONAL_FIRST,
    "WuerstchenPriorPipeline": _CONDITIONAL_FIRST,
    "ZImagePipeline": Family(
        "doubled", conditional_first=True, scale_offset=1.0, may_end=True, decodes=False, latents="shift", packed=2, pixels=1024
    ),
    "FluxPipeline": _UNKNOWN_SCALE,
    "Flux2Pipeline": _UNKNOWN_SCALE,
    "Flux2KleinPipeline": _PACKED,
    "QwenImagePipeline": _UNKNOWN_SCALE,
    "QwenImage21Pipeline": Family("branches", scale=None, packed=4, pixels=1024),  # of an autoencoder that unpacks a patch, too
    "ChromaPipeline": _PACKED,
    "CogView4Pipeline": _BRANCHES,
    "Lumina2Pipeline": _BRANCHES,
    "Krea2Pipeline": Family("branches", scale_offset=1.0, packed=2, pixels=1024),
    "LongCatImagePipeline": _PACKED,
    "OvisImagePipeline": _PACKED,
    "GlmImagePipeline": Family("branches", packed=4, pixels=1024),  # a token of its prior is two patches wide
    "HunyuanImagePipeline": Family("branches", scale=None, packed=2, pixels=2048),
    "SanaSprintPipeline": Family("branches", scale=None),
    "ModularPipeline": Family("branches", scale=None),  # its guider splits the branches
}


_REGISTERED: dict[type, Family] = {}


def register_family(pipeline: type, family: Family) -> None:
    """Describes how the pipelines of a class call their denoiser, and those of its subclasses, in place of learning it.

    Args:
        pipeline: class of the pipeline.
        family: its description.
    """
    _REGISTERED[pipeline] = family


def family_of(pipeline: type) -> Family:
    """The family of a pipeline class, or of the nearest of its base classes that has one."""
    known = (_REGISTERED.get(base) or FAMILIES.get(base.__name__) for base in pipeline.__mro__)
    return next((family for family in known if family is not None), Family())
