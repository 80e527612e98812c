"""Stock pipelines around untrained denoisers of a given shape: to measure what does not depend on training."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn

from hybridiff.errors import UsageError
from hybridiff.models.inputs import find_denoiser
from jobs.benchmark import published
from jobs.train_shapes.build import build_scheduler

TEXT_WIDTH = 128
HEAD_CHANNELS = 64


def untrained_unet(channels: Sequence[int], transformer_layers: Sequence[int]) -> UNet2DConditionModel:
    """SDXL's U-Net with other channels and transformer layers at each level; the first level has no attention."""
    levels = len(channels) - 1
    return UNet2DConditionModel(
        sample_size=128,
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * levels),
        up_block_types=(*["CrossAttnUpBlock2D"] * levels, "UpBlock2D"),
        block_out_channels=tuple(channels),
        layers_per_block=2,
        transformer_layers_per_block=tuple(transformer_layers),
        attention_head_dim=tuple(max(1, width // HEAD_CHANNELS) for width in channels),  # heads, in spite of its name
        cross_attention_dim=TEXT_WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=TEXT_WIDTH + 6 * 16,
    )


def untrained_mmdit(blocks: int, heads: int) -> SD3Transformer2DModel:
    """SD3's MMDiT with other depth and width, for latents of 4 channels up to 128 x 128."""
    return SD3Transformer2DModel(
        sample_size=128,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=blocks,
        attention_head_dim=HEAD_CHANNELS,
        num_attention_heads=heads,
        joint_attention_dim=TEXT_WIDTH,
        caption_projection_dim=HEAD_CHANNELS * heads,
        pooled_projection_dim=TEXT_WIDTH,
        pos_embed_max_size=64,
        qk_norm="rms_norm",
    )


def untrained_published(name: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """A published denoiser with random weights, on a device.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in published.NAMES:
        raise UsageError(f"the untrained network is {name!r}; allowed: unet, mmdit, {', '.join(published.NAMES)}")
    denoiser = nn.Module.to(published.build(name), dtype).to_empty(device=device).eval()
    generator = torch.Generator(device).manual_seed(0)
    for tensor in (*denoiser.parameters(), *denoiser.buffers()):
        if tensor.is_floating_point():
            tensor.data.normal_(0, 0.02, generator=generator)
        else:
            tensor.zero_()
    return denoiser


def untrained_pipeline(denoiser: nn.Module) -> Any:
    """The stock pipeline of a denoiser, without text encoders and autoencoder: it takes embeddings and returns latents.

    Raises:
        UsageError: the denoiser is neither SDXL's nor SD3's.
    """
    if isinstance(denoiser, SD3Transformer2DModel):
        absent = {**_absent(), "text_encoder_3": None, "tokenizer_3": None}
        pipeline: Any = StableDiffusion3Pipeline(**absent, transformer=denoiser, scheduler=build_scheduler("sd3"))
    elif isinstance(denoiser, UNet2DConditionModel) and denoiser.config.addition_embed_type == "text_time":
        pipeline = StableDiffusionXLPipeline(**_absent(), unet=denoiser, scheduler=build_scheduler("xl"), add_watermarker=False)
    else:
        raise UsageError(f"timing an untrained {type(denoiser).__name__}; allowed: SDXL's U-Net and SD3's transformer")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def random_embeddings(pipeline: Any, images: Sequence[int], tokens: int) -> dict[str, Tensor]:
    """Random prompt embeddings, image i's always the same: what an untrained pipeline takes in place of prompts."""
    denoiser: Any = find_denoiser(pipeline)
    config = denoiser.config
    if isinstance(denoiser, UNet2DConditionModel):
        width = config.cross_attention_dim
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    else:
        width, pooled = config.joint_attention_dim, config.pooled_projection_dim

    def rows(*shape: int, offset: int) -> Tensor:
        drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(8 * image + offset)) for image in images]
        return torch.stack(drawn).to(denoiser.device, denoiser.dtype)

    return {
        "prompt_embeds": rows(tokens, width, offset=0),
        "negative_prompt_embeds": rows(tokens, width, offset=1),
        "pooled_prompt_embeds": rows(pooled, offset=2),
        "negative_pooled_prompt_embeds": rows(pooled, offset=3),
    }


def _absent() -> dict[str, None]:
    return dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
