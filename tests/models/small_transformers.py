"""Small random transformers of the classes that are called most differently, and calls of them as their pipelines make them."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AuraFlowTransformer2DModel,
    BriaTransformer2DModel,
    ChromaTransformer2DModel,
    CogView3PlusTransformer2DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    HiDreamImageTransformer2DModel,
    HunyuanDiT2DModel,
    LuminaNextDiT2DModel,
    QwenImageTransformer2DModel,
    ZImageTransformer2DModel,
)
from diffusers.models.embeddings import get_2d_rotary_pos_embed, get_2d_rotary_pos_embed_lumina
from torch import Tensor, nn

Call = dict[str, Any]
TEXT = 12  # width and number of tokens of the text, the least that keeps them apart from other sizes
T5 = 16  # width of HunyuanDiT's second text, which has 8 heads
POOLED = 6

HEADS = {"num_attention_heads": 2, "attention_head_dim": 4}
WIDE_HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}  # for rotary embeddings of several axes
TWO_STREAMS = {"patch_size": 1, "in_channels": 4, "num_layers": 2, "num_single_layers": 4, "joint_attention_dim": TEXT}
AXES = {"axes_dims_rope": (4, 2, 2)}


def _flux(rows: int, size: int, ids: tuple[int, ...] = (), **given: Any) -> Call:
    """Packed latents (rows, tokens, channels), and position ids, of FLUX.2 (rows, tokens, 4)."""
    grid, axes = size // 2, 4 if ids else 3
    positions = torch.cartesian_prod(*(torch.arange(float(n)) for n in (1, grid, grid)))
    image = nn.functional.pad(positions, (0, axes - 3)).expand(*ids, -1, -1)
    return {
        "hidden_states": torch.randn(rows, grid * grid, 4),
        "img_ids": image,
        "txt_ids": torch.zeros(*ids, TEXT, axes),
        **_text_and_time(rows),
        **given,
    }


def _text_and_time(rows: int, time: float = 0.7) -> Call:
    return {"encoder_hidden_states": torch.randn(rows, TEXT, TEXT), "timestep": torch.full((rows,), time)}


def _latents(rows: int, size: int) -> Tensor:
    return torch.randn(rows, 4, size, size)


def _auraflow(rows: int, size: int) -> Call:
    return {"hidden_states": _latents(rows, size), **_text_and_time(rows)}


def _hunyuan_dit(rows: int, size: int) -> Call:
    grid = size // 2
    return {
        "hidden_states": _latents(rows, size),
        **_text_and_time(rows, 700.0),
        "text_embedding_mask": torch.ones(rows, TEXT),
        "encoder_hidden_states_t5": torch.randn(rows, TEXT, T5),
        "text_embedding_mask_t5": torch.ones(rows, TEXT),
        "image_meta_size": torch.ones(rows, 6),
        "style": torch.zeros(rows, dtype=torch.long),
        "image_rotary_emb": get_2d_rotary_pos_embed(4, ((0, 0), (grid, grid)), (grid, grid), output_type="pt"),
    }


def _cogview3(rows: int, size: int) -> Call:
    sizes = {name: torch.full((rows, 2), 8.0 * size) for name in ("original_size", "target_size", "crop_coords")}
    return {"hidden_states": _latents(rows, size), **_text_and_time(rows, 700.0), **sizes}


def _lumina_next(rows: int, size: int) -> Call:
    return {
        "hidden_states": _latents(rows, size),
        **_text_and_time(rows),
        "encoder_mask": torch.ones(rows, TEXT, dtype=torch.bool),
        "image_rotary_emb": get_2d_rotary_pos_embed_lumina(8, 384, 384),
        "cross_attention_kwargs": {},
    }


def _flux_1(rows: int, size: int) -> Call:
    return _flux(rows, size, pooled_projections=torch.randn(rows, POOLED), guidance=torch.full((rows,), 3.5))


def _flux_2(rows: int, size: int) -> Call:
    return _flux(rows, size, ids=(rows,), guidance=torch.full((rows,), 3.5))


def _chroma(rows: int, size: int) -> Call:
    return _flux(rows, size, attention_mask=torch.ones(rows, TEXT + (size // 2) ** 2))


def _qwen_image(rows: int, size: int) -> Call:
    grid = size // 2
    return {
        "hidden_states": torch.randn(rows, grid * grid, 16),
        **_text_and_time(rows),
        "encoder_hidden_states_mask": torch.ones(rows, TEXT, dtype=torch.long),
        "img_shapes": [[(1, grid, grid)]] * rows,
    }


def _z_image(rows: int, size: int) -> Call:
    """Latents and text as lists of tensors."""
    texts = [torch.randn(TEXT, TEXT) for _ in range(rows)]
    return {"x": list(_latents(rows, size).unsqueeze(2)), "t": torch.full((rows,), 0.3), "cap_feats": texts}


def _hidream(rows: int, size: int) -> Call:
    """One text with its batch on the second axis."""
    return {
        "hidden_states": _latents(rows, size),
        "timesteps": torch.full((rows,), 700.0),
        "encoder_hidden_states_t5": torch.randn(rows, TEXT, TEXT),
        "encoder_hidden_states_llama3": torch.randn(2, rows, TEXT, TEXT),
        "pooled_embeds": torch.randn(rows, POOLED),
    }


TRANSFORMERS: dict[str, tuple[Any, Call, Callable[[int, int], Call]]] = {  # class, configuration, and call
    "AuraFlow": (
        AuraFlowTransformer2DModel,
        {
            **HEADS,
            "sample_size": 8,
            "num_mmdit_layers": 2,
            "num_single_dit_layers": 4,
            "joint_attention_dim": TEXT,
            "caption_projection_dim": 8,
            "pos_embed_max_size": 64,
        },
        _auraflow,
    ),
    "HunyuanDiT": (
        HunyuanDiT2DModel,
        {
            **HEADS,
            "in_channels": 4,
            "patch_size": 2,
            "sample_size": 16,
            "hidden_size": 8,
            "num_layers": 8,
            "cross_attention_dim": TEXT,
            "cross_attention_dim_t5": T5,
            "pooled_projection_dim": POOLED,
            "text_len": TEXT,
            "text_len_t5": TEXT,
            "activation_fn": "gelu-approximate",
        },
        _hunyuan_dit,
    ),
    "CogView3+": (
        CogView3PlusTransformer2DModel,
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "text_embed_dim": TEXT,
            "time_embed_dim": 8,
            "condition_dim": 4,
            "pos_embed_max_size": 8,
            "sample_size": 8,
        },
        _cogview3,
    ),
    "Lumina-Next": (
        LuminaNextDiT2DModel,
        {
            "sample_size": 16,
            "in_channels": 4,
            "hidden_size": 24,
            "num_layers": 4,
            "num_attention_heads": 3,
            "num_kv_heads": 1,
            "multiple_of": 16,
            "cross_attention_dim": TEXT,
        },
        _lumina_next,
    ),
    "Bria": (BriaTransformer2DModel, {**TWO_STREAMS, **WIDE_HEADS, **AXES}, _flux),
    "FLUX.1": (
        FluxTransformer2DModel,
        {**TWO_STREAMS, **WIDE_HEADS, **AXES, "pooled_projection_dim": POOLED, "guidance_embeds": True},
        _flux_1,
    ),
    "FLUX.2": (
        Flux2Transformer2DModel,
        {**TWO_STREAMS, **WIDE_HEADS, "timestep_guidance_channels": 8, "axes_dims_rope": (2, 2, 2, 2)},
        _flux_2,
    ),
    "Qwen-Image": (
        QwenImageTransformer2DModel,
        {**WIDE_HEADS, **AXES, "in_channels": 16, "out_channels": 4, "num_layers": 4, "joint_attention_dim": TEXT},
        _qwen_image,
    ),
    "Z-Image": (
        ZImageTransformer2DModel,
        {
            "in_channels": 4,
            "dim": 24,
            "n_layers": 4,
            "n_refiner_layers": 2,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": TEXT,
            "axes_dims": (4, 4, 4),
            "axes_lens": (64, 32, 32),
        },
        _z_image,
    ),
    "Chroma": (
        ChromaTransformer2DModel,
        {
            **TWO_STREAMS,
            **WIDE_HEADS,
            **AXES,
            "approximator_num_channels": 8,
            "approximator_hidden_dim": 8,
            "approximator_layers": 1,
        },
        _chroma,
    ),
    "HiDream": (
        HiDreamImageTransformer2DModel,
        {
            **WIDE_HEADS,
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "num_single_layers": 3,
            "caption_channels": (TEXT, TEXT),
            "text_emb_dim": POOLED,
            "num_routed_experts": 3,
            "axes_dims_rope": (4, 2, 2),
            "max_resolution": (16, 16),
            "llama_layers": (0, 1, 0, 1, 0),
        },
        _hidream,
    ),
}

ROWS_ELSEWHERE = ("Z-Image", "HiDream")  # calls with inputs whose rows are not on the first axis of a tensor


def build(name: str) -> nn.Module:
    """A small transformer all of whose weights are random, also those that start at zero or uninitialised."""
    kind, config, _ = TRANSFORMERS[name]
    denoiser: nn.Module = kind(**config).eval()
    for parameter in denoiser.parameters():
        nn.init.normal_(parameter, std=0.1)
    return denoiser


def call(denoiser: nn.Module, rows: int, size: int) -> Call:
    """What its pipeline passes to a denoiser's forward, by name; ``size`` is that of the latents, before packing."""
    make = next(make for kind, _, make in TRANSFORMERS.values() if type(denoiser) is kind)
    return {**make(rows, size), "return_dict": False}
