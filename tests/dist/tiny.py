"""Small random pipelines of the shapes of SDXL and SD3, without text encoders (prompts are embeddings): quick to run."""

from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

SIZE = 16  # of latents


def tiny_xl(depth: int = 2, channels: int = 16) -> StableDiffusionXLPipeline:
    """A U-Net with two resolutions, cross-attention in the lower one, and a DDIM sampler."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=SIZE,
        block_out_channels=(channels,) * (depth - 1) + (2 * channels,),
        down_block_types=("DownBlock2D",) * (depth - 1) + ("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * (depth - 1),
        layers_per_block=1,
        attention_head_dim=8,
        norm_num_groups=8,
        cross_attention_dim=16,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
    )
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False)
    nothing = dict.fromkeys(("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    return _quiet(StableDiffusionXLPipeline(**nothing, unet=unet.eval(), scheduler=scheduler, add_watermarker=False))


def tiny_sd3(layers: int = 4, heads: int = 2) -> StableDiffusion3Pipeline:
    """Joint blocks, and a flow-matching Euler sampler."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=SIZE,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        attention_head_dim=8,
        num_attention_heads=heads,
        joint_attention_dim=16,
        caption_projection_dim=8 * heads,
        pooled_projection_dim=16,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.3)
    nothing = dict.fromkeys(
        ("vae", "text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
    )
    return _quiet(
        StableDiffusion3Pipeline(**nothing, transformer=transformer.eval(), scheduler=FlowMatchEulerDiscreteScheduler())
    )


def _quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: Any, images: int, steps: int, **options: Any) -> torch.Tensor:
    """Latents (images, 4, 16, 16) of as many different prompts and negative prompts; seeds are 0, 1, and so on."""
    noise = torch.Generator().manual_seed(1)
    dtype, pixels = next(pipeline.components.get("unet", pipeline.components.get("transformer")).parameters()).dtype, 8 * SIZE
    embeds = {
        name: torch.randn(images, *shape, generator=noise).to(dtype)
        for name, shape in (
            ("prompt_embeds", (5, 16)),
            ("negative_prompt_embeds", (5, 16)),
            ("pooled_prompt_embeds", (16,)),
            ("negative_pooled_prompt_embeds", (16,)),
        )
    }
    generator = [torch.Generator().manual_seed(i) for i in range(images)]
    given = embeds | {"height": pixels, "width": pixels, "guidance_scale": 5.0, "generator": generator} | options
    return pipeline(num_inference_steps=steps, output_type="latent", **given).images
