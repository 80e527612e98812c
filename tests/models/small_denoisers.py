"""Small random denoisers of the classes that can be cut, and calls of them as their pipelines make them."""

from typing import Any

import torch
from diffusers import PixArtTransformer2DModel, SanaTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn

from tests.models import small_transformers
from tests.models.small_transformers import TEXT, Call

CROSS, UP, DOWN, UP_CROSS = "CrossAttnDownBlock2D", "UpBlock2D", "DownBlock2D", "CrossAttnUpBlock2D"


def unet(down: tuple[str, ...] = (DOWN, CROSS), **config: Any) -> UNet2DConditionModel:
    up = tuple(UP_CROSS if block == CROSS else UP for block in reversed(down))
    channels = tuple(8 * 2 ** min(level, 2) for level in range(len(down)))
    defaults = {"layers_per_block": 2, "norm_num_groups": 4, "cross_attention_dim": TEXT, "attention_head_dim": 4}
    shape = {"down_block_types": down, "up_block_types": up, "block_out_channels": channels}
    return UNet2DConditionModel(**{**defaults, **shape, **config}).eval()


UNETS: dict[str, Call] = {
    "two levels": {},
    "one layer": {"layers_per_block": 1},
    "as SDXL": {"down": (DOWN, CROSS, CROSS), "transformer_layers_per_block": (1, 2, 3), "use_linear_projection": True},
    "as SD 1.5": {"down": (CROSS, CROSS, CROSS, DOWN)},
    "as the refiner": {"down": (DOWN, CROSS, CROSS, DOWN)},
    "inpainting": {"in_channels": 9},
    "no attention": {"down": (DOWN, DOWN), "mid_block_type": "UNetMidBlock2D"},
    "no middle": {"down": (DOWN, CROSS, CROSS), "mid_block_type": None},
    "layers by level": {"down": (CROSS, CROSS, DOWN), "layers_per_block": (1, 3, 2)},
    "one level": {"down": (CROSS,)},
}
TRANSFORMERS: dict[str, tuple[Any, Call]] = {
    "SD3": (SD3Transformer2DModel, {"pooled_projection_dim": 6, "num_layers": 5}),
    "SD3.5 medium": (
        SD3Transformer2DModel,
        {"pooled_projection_dim": 6, "num_layers": 6, "qk_norm": "rms_norm", "dual_attention_layers": (0, 1, 2)},
    ),
    "PixArt": (PixArtTransformer2DModel, {"num_layers": 4, "cross_attention_dim": 8, "caption_channels": TEXT}),
    "Sana": (
        SanaTransformer2DModel,
        {
            "num_layers": 4,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 4,
            "cross_attention_dim": 8,
            "caption_channels": TEXT,
        },
    ),
}
NAMES = (*UNETS, *TRANSFORMERS, *small_transformers.TRANSFORMERS)


def build(name: str) -> nn.Module:
    """A small denoiser with random weights."""
    torch.manual_seed(0)
    if name in UNETS:
        return unet(**UNETS[name])
    if name in small_transformers.TRANSFORMERS:
        return small_transformers.build(name)
    kind, config = TRANSFORMERS[name]
    shape = {"num_attention_heads": 2, "attention_head_dim": 4, "sample_size": 8, "patch_size": 2, "in_channels": 4}
    if kind is SD3Transformer2DModel:
        shape |= {"caption_projection_dim": 8, "joint_attention_dim": TEXT, "pos_embed_max_size": 16}
    denoiser: nn.Module = kind(**{**shape, **config}).eval()
    return denoiser


def call(denoiser: nn.Module, rows: int = 2, size: int = 16) -> Call:
    """What its pipeline passes to a denoiser's forward, by name."""
    if any(type(denoiser) is kind for kind, _, _ in small_transformers.TRANSFORMERS.values()):
        return small_transformers.call(denoiser, rows, size)
    config: Any = denoiser.config
    latents = torch.randn(rows, config.in_channels, size, size)
    given: Call = {"encoder_hidden_states": torch.randn(rows, TEXT, TEXT), "return_dict": False}
    if isinstance(denoiser, UNet2DConditionModel):
        return {"sample": latents, "timestep": torch.tensor(7), "added_cond_kwargs": None, **given}
    given |= {"hidden_states": latents, "timestep": torch.full((rows,), 7.0)}
    if isinstance(denoiser, SD3Transformer2DModel):
        return {**given, "pooled_projections": torch.randn(rows, 6)}
    mask: Tensor = torch.ones(rows, TEXT, dtype=torch.int64)
    return {**given, "encoder_attention_mask": mask, **_conditions(denoiser)}


def _conditions(denoiser: nn.Module) -> Call:
    pixart = isinstance(denoiser, PixArtTransformer2DModel)
    return {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}} if pixart else {}
