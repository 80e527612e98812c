"""Published configurations of known denoisers, for planning and benchmarks without weights: everything is on the meta device."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel, SanaTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn

_UNET_4 = {"block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2}
_SD_1_5 = {**_UNET_4, "sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
_SD_2_1 = {
    **_UNET_4,
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
_TEXT_TIME = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256, "use_linear_projection": True}
_SDXL = {
    **_TEXT_TIME,
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "projection_class_embeddings_input_dim": 2816,
}
_SDXL_REFINER = {
    **_TEXT_TIME,
    "sample_size": 128,
    "block_out_channels": (384, 768, 1536, 1536),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": 4,
    "attention_head_dim": (6, 12, 24, 24),
    "cross_attention_dim": 1280,
    "projection_class_embeddings_input_dim": 2560,
}
_SD3 = {
    "sample_size": 128,
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 192,
}
_SD3_5_LARGE = {**_SD3, "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "qk_norm": "rms_norm"}
_SD3_5_MEDIUM = {**_SD3, "pos_embed_max_size": 384, "qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13))}
_PIXART_SIGMA = {"sample_size": 128, "caption_channels": 4096, "interpolation_scale": 2, "use_additional_conditions": False}


@dataclass(frozen=True)
class _Denoiser:
    """A class, arguments of its constructor, channels and pixels per latent, tokens of text and their width."""

    kind: Any
    config: dict[str, Any]
    channels: int
    tokens: int
    width: int
    scale: int = 8


_DENOISERS = {
    "sd-1.5": _Denoiser(UNet2DConditionModel, _SD_1_5, 4, 77, 768),
    "sd-1.5-inpainting": _Denoiser(UNet2DConditionModel, {**_SD_1_5, "in_channels": 9}, 9, 77, 768),
    "sd-2.1": _Denoiser(UNet2DConditionModel, _SD_2_1, 4, 77, 1024),
    "sdxl": _Denoiser(UNet2DConditionModel, _SDXL, 4, 77, 2048),
    "sdxl-inpainting": _Denoiser(UNet2DConditionModel, {**_SDXL, "in_channels": 9}, 9, 77, 2048),
    "sdxl-refiner": _Denoiser(UNet2DConditionModel, _SDXL_REFINER, 4, 77, 1280),
    "sd3-medium": _Denoiser(SD3Transformer2DModel, _SD3, 16, 77 + 256, 4096),
    "sd3.5-medium": _Denoiser(SD3Transformer2DModel, _SD3_5_MEDIUM, 16, 77 + 256, 4096),
    "sd3.5-large": _Denoiser(SD3Transformer2DModel, _SD3_5_LARGE, 16, 77 + 256, 4096),
    "pixart-sigma": _Denoiser(PixArtTransformer2DModel, _PIXART_SIGMA, 4, 300, 4096),
    "sana-1.6b": _Denoiser(SanaTransformer2DModel, {}, 32, 300, 2304, scale=32),
}
NAMES = tuple(_DENOISERS)


def build(name: str) -> nn.Module:
    """A published denoiser on the meta device, in fp32, without weights; ``name`` is one of ``NAMES``."""
    known = _DENOISERS[name]
    with torch.device("meta"):
        module: nn.Module = known.kind.from_config(dict(known.config))
    return module.eval()


def inputs(name: str, height: int, width: int, batch: int, dtype: torch.dtype) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that the stock pipeline passes to a published denoiser's forward, on the meta device.

    Args:
        name: one of ``NAMES``.
        height: height of an image in pixels.
        width: width of an image in pixels.
        batch: rows of the denoiser's batch: two per image under guidance.
        dtype: dtype of everything but timesteps and masks.

    Returns:
        Positional and keyword arguments.
    """
    known = _DENOISERS[name]

    def tensor(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=kind, device="meta")

    sample = tensor(batch, known.channels, height // known.scale, width // known.scale)
    text = {"encoder_hidden_states": tensor(batch, known.tokens, known.width), "return_dict": False}
    if known.kind is UNet2DConditionModel:
        return (sample, tensor(kind=torch.int64)), {
            **text,
            "timestep_cond": None,
            "cross_attention_kwargs": None,
            "added_cond_kwargs": _text_time(known.config, batch, dtype),
        }
    timestep = {"timestep": tensor(batch, kind=torch.float32)}
    if known.kind is SD3Transformer2DModel:
        pooled = tensor(batch, 2048)
        return (), {"hidden_states": sample, **timestep, **text, "pooled_projections": pooled, "joint_attention_kwargs": None}
    mask = {"encoder_attention_mask": tensor(batch, known.tokens, kind=torch.int64)}
    if known.kind is SanaTransformer2DModel:
        return (sample,), {**text, **mask, **timestep, "attention_kwargs": None}
    return (sample,), {**text, **mask, **timestep, "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}


def _text_time(config: dict[str, Any], batch: int, dtype: torch.dtype) -> dict[str, Tensor] | None:
    """SDXL's pooled text (batch, 1280) and sizes and crops (batch, 6; the refiner's 5), of which each takes 256 channels."""
    if "addition_embed_type" not in config:
        return None
    ids = (config["projection_class_embeddings_input_dim"] - 1280) // config["addition_time_embed_dim"]
    shapes = {"text_embeds": (batch, 1280), "time_ids": (batch, ids)}
    return {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}
