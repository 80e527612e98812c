"""Small random pipelines of the shapes of SDXL, SD3, PixArt and Sana, without text encoders (prompts are embeddings)."""

from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
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


def tiny_pixart(
    kind: type[PixArtAlphaPipeline] | type[PixArtSigmaPipeline] = PixArtAlphaPipeline,
) -> PixArtAlphaPipeline | PixArtSigmaPipeline:
    """Blocks one after the other that predict a variance too, of PixArt-alpha conditioned on the size; a multistep sampler."""
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        sample_size=128 if kind is PixArtAlphaPipeline else SIZE,  # of 128, the pipeline passes the size
        in_channels=4,
        out_channels=8,
        num_layers=4,
        attention_head_dim=8,
        num_attention_heads=3,
        cross_attention_dim=24,
        caption_channels=16,
    )
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.3)
    nothing = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    return _quiet(kind(**nothing, transformer=transformer.eval(), scheduler=DPMSolverMultistepScheduler()))


def tiny_sana() -> SanaPipeline:
    """Blocks of linear attention, and a multistep flow-matching sampler."""
    torch.manual_seed(0)
    transformer = SanaTransformer2DModel(
        sample_size=SIZE,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=8,
        num_attention_heads=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
    )
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    nothing = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    return _quiet(SanaPipeline(**nothing, transformer=transformer.eval(), scheduler=scheduler))


def _quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latents_of(pipeline: Any, images: int, steps: int, **options: Any) -> torch.Tensor:
    """Latents (images, 4, 16, 16) of as many different prompts and negative prompts; seeds are 0, 1, and so on."""
    weight = next(pipeline.components.get("unet", pipeline.components.get("transformer")).parameters())
    embeds = {name: tensor.to(weight) for name, tensor in embeddings(pipeline, images).items()}
    pixels = (32 if isinstance(pipeline, SanaPipeline) else 8) * SIZE
    generator = [torch.Generator().manual_seed(i) for i in range(images)]
    given = embeds | {"height": pixels, "width": pixels, "guidance_scale": 5.0, "generator": generator}
    given |= {"use_resolution_binning": False, "negative_prompt": None} if masked(pipeline) else {}
    return pipeline(num_inference_steps=steps, output_type="latent", **given | options).images


def embeddings(pipeline: Any, images: int) -> dict[str, torch.Tensor]:
    """Random prompts and negative prompts: two vectors with SDXL and SD3, with PixArt and Sana masks of different lengths."""
    noise = torch.Generator().manual_seed(1)
    drawn = {name: torch.randn(images, 5, 16, generator=noise) for name in ("prompt_embeds", "negative_prompt_embeds")}
    if not masked(pipeline):
        names = ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        return drawn | {name: torch.randn(images, 16, generator=noise) for name in names}
    lengths = torch.arange(images)[:, None] % 4 + 2
    mask = (torch.arange(5) < lengths).float()
    return drawn | {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask.flip(0)}


def masked(pipeline: Any) -> bool:
    """Whether a pipeline takes attention masks with its prompts."""
    return isinstance(pipeline, PixArtAlphaPipeline | PixArtSigmaPipeline | SanaPipeline)
