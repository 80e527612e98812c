"""Small random pipelines of the classes that datasets are made with in 2026; prompts are embeddings, and no encoder is needed."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler, SCMScheduler
from torch import Tensor

HEAD = 16
NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
FLUX = {
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": HEAD,
    "num_attention_heads": 2,
    "axes_dims_rope": (4, 4, 8),
}


@dataclass(frozen=True)
class Case:
    """A tiny pipeline and how it is called.

    Args:
        pipeline: class name of the pipeline.
        denoiser: class name of its denoiser.
        config: configuration of the denoiser.
        prompts: makes the prompt arguments of a number of images.
        options: further arguments of the call.
        parts: makes further arguments of the pipeline's constructor.
        attributes: set on the pipeline afterwards.
        scheduler: makes the scheduler.
        pixels: height and width.
        most: largest batch of the stock pipeline.
    """

    pipeline: str
    denoiser: str
    config: dict[str, Any]
    prompts: Callable[[int], dict[str, Any]]
    options: dict[str, Any] = field(default_factory=dict)
    parts: Callable[[], dict[str, Any]] = dict
    attributes: dict[str, Any] = field(default_factory=dict)
    scheduler: Callable[[], Any] = FlowMatchEulerDiscreteScheduler
    pixels: int = 64
    most: int = 8

    def make(self) -> Any:
        """The pipeline, with random weights that are equal in every process."""
        torch.manual_seed(0)
        denoiser = getattr(diffusers, self.denoiser)(**self.config).eval()
        generator = torch.Generator().manual_seed(2)
        for parameter in denoiser.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(std=0.5 / parameter.shape[1] ** 0.5 if parameter.ndim == 2 else 0.2, generator=generator)
            elif not parameter.any():
                parameter.data.normal_(std=0.05, generator=generator)
        kind = getattr(diffusers, self.pipeline)
        wanted = list(inspect.signature(kind.__init__).parameters)[1:]
        parts = {name: None for name in wanted if inspect.signature(kind.__init__).parameters[name].default is inspect._empty}
        name = "unet" if "UNet" in self.denoiser else "transformer"
        pipeline = kind(**parts | {name: denoiser, "scheduler": self.scheduler()} | self.parts())
        pipeline.set_progress_bar_config(disable=True)
        for name, value in self.attributes.items():
            setattr(pipeline, name, value)
        return pipeline

    def generate(self, pipeline: Any, images: int, steps: int, same: bool = False, **options: Any) -> Tensor:
        """Latents of as many images; seeds are 0, 1, and so on, or all are the first image if ``same``."""
        prompts = self.prompts(images)
        if same:
            prompts = {name: repeated(value) for name, value in prompts.items()}
        generator = [torch.Generator().manual_seed(0 if same else i) for i in range(images)]
        given = {"height": self.pixels, "width": self.pixels, "num_inference_steps": steps, "output_type": "latent"}
        latents: Tensor = pipeline(**prompts, **given | {"generator": generator} | self.options | options).images
        return latents


def repeated(value: Any) -> Any:
    """The first row of prompts for all rows."""
    return [value[0]] * len(value) if isinstance(value, list) else value[:1].expand_as(value).contiguous()


def noise(seed: int, *shape: int) -> Tensor:
    """Random embeddings."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pair(rows: int, channels: int = 16, tokens: tuple[int, int] = (5, 7)) -> dict[str, Any]:
    """Prompts and negative prompts of different lengths."""
    return {
        "prompt_embeds": noise(1, rows, tokens[0], channels),
        "negative_prompt_embeds": noise(2, rows, tokens[1], channels),
    }


def pooled(rows: int) -> dict[str, Any]:
    return {"pooled_prompt_embeds": noise(3, rows, 16), "negative_pooled_prompt_embeds": noise(4, rows, 16)}


def masks(
    rows: int, name: str = "prompt_attention_mask", tokens: tuple[int, int] = (5, 7), kind: Any = torch.bool
) -> dict[str, Any]:
    """Masks that let every token through."""
    return {name: torch.ones(rows, tokens[0], dtype=kind), f"negative_{name}": torch.ones(rows, tokens[1], dtype=kind)}


def only(prompts: dict[str, Any]) -> dict[str, Any]:
    """The prompts without negative ones."""
    return {name: value for name, value in prompts.items() if not name.startswith("negative")}


def lists(rows: int) -> dict[str, Any]:
    """One tensor for each prompt, of its own length."""
    return {
        "prompt_embeds": [noise(10 + i, 5 + i % 2, 16) for i in range(rows)],
        "negative_prompt_embeds": [noise(20 + i, 4, 16) for i in range(rows)],
    }


def texts(rows: int) -> dict[str, Any]:
    """Prompts in words, for pipelines that take no embeddings."""
    return {"prompt": [f"prompt {i}" for i in range(rows)], "negative_prompt": [f"negative {i}" for i in range(rows)]}


def encoded(prompt: list[str]) -> Tensor:
    """Random embeddings of prompts in words, (prompts, 5 or 7, 16)."""
    return torch.cat([noise(len(text) + int(text[-1]), 1, 5 if text.startswith("prompt") else 7, 16) for text in prompt])


def fibo_encoded(prompt: list[str], **options: Any) -> tuple[Tensor, list[Tensor], Tensor]:
    """What Bria-Fibo's text encoder returns: embeddings, the states of its layers, and a mask."""
    embeds = encoded(prompt)
    return torch.cat([embeds, embeds], -1), [embeds * (1 + i / 4) for i in range(4)], torch.ones(embeds.shape[:2])


class Processor:
    """What Qwen-Image 2.1 asks its processor for, when it is made."""

    tokenizer = SimpleNamespace(encode=lambda text: [0])

    def apply_chat_template(self, message: Any, **options: Any) -> list[list[int]]:
        return [[0, 1]]


def autoencoder(channels: int = 4) -> Any:
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    return diffusers.AutoencoderKL(
        block_out_channels=[8] * 3, norm_num_groups=4, latent_channels=channels, shift_factor=0.1, **blocks
    )


def flux2_autoencoder() -> Any:
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    made = diffusers.AutoencoderKLFlux2(block_out_channels=[8] * 4, norm_num_groups=4, latent_channels=4, **blocks)
    return made.eval()


Z_IMAGE = Case(
    "ZImagePipeline",
    "ZImageTransformer2DModel",
    {"in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 16}
    | {"axes_dims": [4, 4, 8], "axes_lens": [64, 32, 32]},
    lists,
    {"guidance_scale": 3.0},
)
FLUX_TRUE_CFG = Case(
    "FluxPipeline",
    "FluxTransformer2DModel",
    FLUX | {"joint_attention_dim": 16, "pooled_projection_dim": 16, "guidance_embeds": True},
    lambda rows: pair(rows, tokens=(5, 5)) | pooled(rows),
    {"true_cfg_scale": 4.0},
)
FLUX2 = {"joint_attention_dim": 16, "timestep_guidance_channels": 16, "axes_dims_rope": (4, 4, 4, 4)}
BRIA = FLUX | {"joint_attention_dim": 16, "pooled_projection_dim": 16}

BRANCHES = {
    "flux": FLUX_TRUE_CFG,
    "flux2-klein": Case(
        "Flux2KleinPipeline",
        "Flux2Transformer2DModel",
        FLUX | FLUX2 | {"guidance_embeds": False},
        pair,
        {"guidance_scale": 4.0},
        lambda: {"vae": flux2_autoencoder()},
    ),
    "qwen": Case(
        "QwenImagePipeline",
        "QwenImageTransformer2DModel",
        {"in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": HEAD, "num_attention_heads": 2}
        | {"joint_attention_dim": 16, "axes_dims_rope": (4, 4, 8)},
        lambda rows: pair(rows) | masks(rows, "prompt_embeds_mask"),
        {"true_cfg_scale": 4.0},
    ),
    "qwen-2.1": Case(
        "QwenImage21Pipeline",
        "QwenImage21Transformer2DModel",
        {"in_channels": 16, "out_channels": 16, "num_layers": 2, "attention_head_dim": HEAD, "num_attention_heads": 2}
        | {"context_in_dim": 16, "axes_dims_rope": (4, 4, 8)},
        lambda rows: pair(rows) | masks(rows, "prompt_embeds_mask"),
        {"true_cfg_scale": 4.0},
        lambda: {"processor": Processor()},
    ),
    "chroma": Case(
        "ChromaPipeline",
        "ChromaTransformer2DModel",
        FLUX
        | {"joint_attention_dim": 16, "approximator_num_channels": 8, "approximator_hidden_dim": 16, "approximator_layers": 1},
        lambda rows: pair(rows) | masks(rows, kind=torch.float32),
        {"guidance_scale": 4.0},
    ),
    "cogview4": Case(
        "CogView4Pipeline",
        "CogView4Transformer2DModel",
        {"in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": HEAD, "num_attention_heads": 2}
        | {"text_embed_dim": 16, "time_embed_dim": 16, "condition_dim": 8, "sample_size": 8, "rope_axes_dim": (16, 16)},
        lambda rows: pair(rows, tokens=(5, 5)),
        {"guidance_scale": 4.0},
    ),
    "lumina2": Case(
        "Lumina2Pipeline",
        "Lumina2Transformer2DModel",
        {
            "sample_size": 8,
            "in_channels": 4,
            "hidden_size": 32,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "num_attention_heads": 2,
        }
        | {"num_kv_heads": 1, "multiple_of": 16, "axes_dim_rope": (4, 4, 8), "axes_lens": (64, 32, 32), "cap_feat_dim": 16},
        lambda rows: pair(rows, tokens=(5, 5)) | masks(rows, tokens=(5, 5)),
        {"guidance_scale": 4.0},
    ),
    "krea2": Case(
        "Krea2Pipeline",
        "Krea2Transformer2DModel",
        {"in_channels": 16, "num_layers": 2, "attention_head_dim": HEAD, "num_attention_heads": 2, "num_key_value_heads": 1}
        | {"intermediate_size": 32, "timestep_embed_dim": 16, "text_hidden_dim": 16, "num_text_layers": 2}
        | {"text_num_attention_heads": 2, "text_num_key_value_heads": 2, "text_intermediate_size": 16}
        | {"num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1, "axes_dims_rope": (4, 4, 8)},
        lambda rows: {
            "prompt_embeds": noise(1, rows, 5, 2, 16),
            "negative_prompt_embeds": noise(2, rows, 5, 2, 16),
            **masks(rows, "prompt_embeds_mask", (5, 5)),
        },
        {"guidance_scale": 3.0},
        lambda: {"text_encoder_select_layers": (0, 1)},
    ),
    "longcat": Case(
        "LongCatImagePipeline",
        "LongCatImageTransformer2DModel",
        FLUX | {"in_channels": 64, "joint_attention_dim": 16, "pooled_projection_dim": 16},
        texts,
        {"guidance_scale": 4.0, "enable_prompt_rewrite": False},
        attributes={"_encode_prompt": encoded},
    ),
    "ovis": Case(
        "OvisImagePipeline",
        "OvisImageTransformer2DModel",
        FLUX | {"joint_attention_dim": 16, "out_channels": 16},
        pair,
        {"guidance_scale": 4.0, "negative_prompt": None},
    ),
    "glm": Case(
        "GlmImagePipeline",
        "GlmImageTransformer2DModel",
        {"in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": HEAD, "num_attention_heads": 2}
        | {"text_embed_dim": 16, "time_embed_dim": 16, "condition_dim": 8, "prior_vq_quantizer_codebook_size": 32},
        lambda rows: pair(rows, tokens=(5, 5)) | {"prior_token_ids": torch.arange(rows * 16).view(rows, 16) % 32},
        {"guidance_scale": 4.0},
    ),
    "hunyuan-image": Case(
        "HunyuanImagePipeline",
        "HunyuanImageTransformer2DModel",
        {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": HEAD, "num_layers": 2}
        | {"num_single_layers": 1, "num_refiner_layers": 1, "patch_size": (1, 1), "text_embed_dim": 16, "text_embed_2_dim": 16}
        | {"rope_axes_dim": (8, 8)},
        lambda rows: {
            **pair(rows),
            **masks(rows, "prompt_embeds_mask", kind=torch.int64),
            "prompt_embeds_2": noise(5, rows, 3, 16),
            "negative_prompt_embeds_2": noise(6, rows, 3, 16),
            **masks(rows, "prompt_embeds_mask_2", (3, 3), torch.int64),
        },
        parts=lambda: {"guider": diffusers.ClassifierFreeGuidance(guidance_scale=4.0)},
        pixels=256,
    ),
}

SINGLE = {
    "flux-dev": Case(
        "FluxPipeline",
        "FluxTransformer2DModel",
        FLUX_TRUE_CFG.config,
        lambda rows: only(pair(rows) | pooled(rows)),
        {"guidance_scale": 3.5},
    ),
    "flux2-dev": Case(
        "Flux2Pipeline",
        "Flux2Transformer2DModel",
        FLUX | FLUX2 | {"guidance_embeds": True},
        lambda rows: only(pair(rows)),
        {"guidance_scale": 4.0},
    ),
    "z-image-turbo": Case(
        Z_IMAGE.pipeline, Z_IMAGE.denoiser, Z_IMAGE.config, lambda rows: only(lists(rows)), {"guidance_scale": 0.0}
    ),
    "sana-sprint": Case(
        "SanaSprintPipeline",
        "SanaTransformer2DModel",
        {"sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 8}
        | {"num_attention_heads": 2, "num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "cross_attention_dim": 16}
        | {"caption_channels": 16, "guidance_embeds": True},
        lambda rows: only(pair(rows) | masks(rows)),
        {"guidance_scale": 4.0, "intermediate_timesteps": None, "use_resolution_binning": False},
        scheduler=SCMScheduler,
        pixels=256,
    ),
    "qwen-without-guidance": Case(
        "QwenImagePipeline",
        "QwenImageTransformer2DModel",
        BRANCHES["qwen"].config,
        lambda rows: only(BRANCHES["qwen"].prompts(rows)),
    ),
}

STABLE_DIFFUSION = Case(
    "StableDiffusionPipeline",
    "UNet2DConditionModel",
    {"sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "attention_head_dim": 8, "norm_num_groups": 8}
    | {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    | {"cross_attention_dim": 16},
    lambda rows: pair(rows, tokens=(5, 5)),
    {"guidance_scale": 4.0},
    lambda: {"requires_safety_checker": False},
    scheduler=lambda: DDIMScheduler(**NOISE),
)
DOUBLED = {
    "sd-1.5": STABLE_DIFFUSION,
    "sd-2.1": replace(
        STABLE_DIFFUSION,
        config=STABLE_DIFFUSION.config | {"use_linear_projection": True},
        scheduler=lambda: DDIMScheduler(**NOISE, prediction_type="v_prediction"),
    ),
    "sd3.5": Case(
        "StableDiffusion3Pipeline",
        "SD3Transformer2DModel",
        {"sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 3, "attention_head_dim": HEAD}
        | {"num_attention_heads": 2, "joint_attention_dim": 16, "caption_projection_dim": 32, "pooled_projection_dim": 16}
        | {"pos_embed_max_size": 16, "qk_norm": "rms_norm", "dual_attention_layers": (0, 1)},
        lambda rows: pair(rows, tokens=(5, 5)) | pooled(rows),
        {"guidance_scale": 4.0},
    ),
    "z-image": Z_IMAGE,
    "auraflow": Case(
        "AuraFlowPipeline",
        "AuraFlowTransformer2DModel",
        {"sample_size": 8, "in_channels": 4, "num_mmdit_layers": 2, "num_single_dit_layers": 2, "attention_head_dim": HEAD}
        | {"num_attention_heads": 2, "joint_attention_dim": 16, "caption_projection_dim": 32, "pos_embed_max_size": 64},
        lambda rows: pair(rows, tokens=(5, 5)) | masks(rows, tokens=(5, 5)),
        {"guidance_scale": 4.0},
    ),
    "hunyuan-dit": Case(
        "HunyuanDiTPipeline",
        "HunyuanDiT2DModel",
        {"num_attention_heads": 2, "attention_head_dim": HEAD, "in_channels": 4, "patch_size": 2, "sample_size": 8}
        | {"hidden_size": 32, "num_layers": 4, "cross_attention_dim": 16, "cross_attention_dim_t5": 16}
        | {"pooled_projection_dim": 16, "text_len": 5, "text_len_t5": 6},
        lambda rows: {
            **pair(rows, tokens=(5, 5)),
            **masks(rows, tokens=(5, 5)),
            "prompt_embeds_2": noise(5, rows, 6, 16),
            "negative_prompt_embeds_2": noise(6, rows, 6, 16),
            **masks(rows, "prompt_attention_mask_2", (6, 6)),
        },
        {"guidance_scale": 4.0, "use_resolution_binning": False},
        lambda: {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
        scheduler=DDPMScheduler,
    ),
    "cogview3plus": Case(
        "CogView3PlusPipeline",
        "CogView3PlusTransformer2DModel",
        {"in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": HEAD, "num_attention_heads": 2}
        | {"text_embed_dim": 16, "time_embed_dim": 16, "condition_dim": 8, "sample_size": 8, "pos_embed_max_size": 8},
        lambda rows: pair(rows, tokens=(5, 5)),
        {"guidance_scale": 4.0},
        scheduler=DDIMScheduler,
    ),
    "bria": Case(
        "BriaPipeline",
        "BriaTransformer2DModel",
        BRIA,
        lambda rows: pair(rows, tokens=(5, 5)),
        {"guidance_scale": 4.0},
        lambda: {"vae": autoencoder()},
        pixels=128,
    ),
    "hidream": Case(
        "HiDreamImagePipeline",
        "HiDreamImageTransformer2DModel",
        {"patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 1, "num_single_layers": 1}
        | {"attention_head_dim": HEAD, "num_attention_heads": 2, "caption_channels": [16, 16], "text_emb_dim": 16}
        | {"num_routed_experts": 2, "num_activated_experts": 1, "axes_dims_rope": (4, 4, 8), "max_resolution": (16, 16)}
        | {"llama_layers": [0, 1], "force_inference_output": True},
        lambda rows: {
            "prompt_embeds_t5": noise(1, rows, 5, 16),
            "negative_prompt_embeds_t5": noise(2, rows, 5, 16),
            "prompt_embeds_llama3": noise(3, 2, rows, 5, 16),
            "negative_prompt_embeds_llama3": noise(4, 2, rows, 5, 16),
            "pooled_prompt_embeds": noise(5, rows, 16),
            "negative_pooled_prompt_embeds": noise(6, rows, 16),
        },
        {"guidance_scale": 4.0},
        attributes={"default_sample_size": 8},
    ),
    "bria-fibo": Case(
        "BriaFiboPipeline",
        "BriaFiboTransformer2DModel",
        BRIA | {"in_channels": 4, "joint_attention_dim": 32, "text_encoder_dim": 16},
        texts,
        {"guidance_scale": 4.0},
        attributes={"get_prompt_embeds": fibo_encoded, "text_encoder": SimpleNamespace(dtype=torch.float32)},
        pixels=128,
    ),
    "prx": Case(
        "PRXPipeline",
        "PRXTransformer2DModel",
        {"in_channels": 4, "patch_size": 2, "context_in_dim": 16, "hidden_size": 32, "num_heads": 2, "depth": 2}
        | {"axes_dim": [8, 8]},
        lambda rows: pair(rows, tokens=(5, 5)) | masks(rows, tokens=(5, 5)),
        {"guidance_scale": 4.0, "use_resolution_binning": False},
        most=1,
    ),
    "ernie": Case(
        "ErnieImagePipeline",
        "ErnieImageTransformer2DModel",
        {"hidden_size": 32, "num_attention_heads": 2, "num_layers": 2, "ffn_hidden_size": 32, "in_channels": 4, "out_channels": 4}
        | {"text_in_dim": 16, "rope_axes_dim": (4, 4, 8)},
        lists,
        {"guidance_scale": 4.0},
        pixels=128,
    ),
}

CASES = BRANCHES | SINGLE | DOUBLED
