"""The network under test: a trained model, or a stock pipeline around an untrained denoiser of a given shape."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn

from hybridiff.config import ModelConfig, SamplingConfig
from hybridiff.errors import UsageError, require
from hybridiff.models.facts import check_model, read_facts
from hybridiff.models.families import family_of
from hybridiff.models.inputs import find_denoiser
from hybridiff.models.load import as_asked, load_pipeline
from jobs.benchmark import published
from jobs.benchmark.config import SHAPES, NetworkConfig, SettingConfig
from jobs.train_shapes.architectures import build_scheduler
from jobs.train_shapes.evaluation import held_out_scenes

PIXELS_PER_LATENT = 8  # of SDXL's and SD3's pipelines, with an autoencoder or without
TEXT_WIDTH = 128
HEAD_CHANNELS = 64


@dataclass(frozen=True)
class Network:
    """A pipeline and its prompts; image i has caption i and seed i in any batch.

    Args:
        config: configuration of the network.
        pipeline: stock pipeline, never modified: rows are measured on copies.
        captions: one for each image; None for an untrained network, which gets random embeddings.
    """

    config: NetworkConfig
    pipeline: Any
    captions: list[str] | None

    def arguments(self, images: Sequence[int], setting: SettingConfig, steps: int) -> dict[str, Any]:
        """The arguments of the pipeline's call that generates some images."""
        known = inspect.signature(type(self.pipeline).__call__).parameters
        scale = "true_cfg_scale" if "true_cfg_scale" in known else "guidance_scale"
        options: dict[str, Any] = {
            "num_inference_steps": steps,
            scale: setting.guidance_scale,
            "height": self.config.height,
            "width": self.config.width,
            "generator": [torch.Generator("cpu").manual_seed(image) for image in images],
            "return_dict": False,
            **as_asked(self.pipeline),
            **self.config.options,
        }
        if self.config.max_sequence_length is not None:
            options["max_sequence_length"] = self.config.max_sequence_length
        if self.captions is None:
            assert self.config.tokens is not None
            return options | random_embeddings(self.pipeline, images, self.config.tokens)
        if scale == "true_cfg_scale" and setting.branches == 2:
            options["negative_prompt"] = [""] * len(images)  # without one, such pipelines have no guidance
        return options | {"prompt": [self.captions[image % len(self.captions)] for image in images]}


def load_network(
    config: NetworkConfig, captions: int, seed: int, device: torch.device, say: Callable[[str], None] = lambda _: None
) -> Network:
    """Loads or builds the network.

    Args:
        config: configuration of the network.
        captions: number of captions, of scenes that were held out from the training of the bundled models.
        seed: seed of the captions.
        device: device of the network.
        say: receives a line before weights are loaded.

    Raises:
        UsageError: the model is not available, or does not accept the options.
    """
    if config.model is None:
        pipeline = untrained_pipeline(_untrained(config, device))
        _check_size(config, pipeline)
        return Network(config, pipeline, None)
    model = ModelConfig(path=config.model, dtype=config.dtype)
    facts = read_facts(model)
    sampling = SamplingConfig(height=config.height, width=config.width, max_sequence_length=config.max_sequence_length)
    check_model(model, sampling, facts)
    say(f"loading {config.model}")
    scenes = held_out_scenes(captions, seed)
    return Network(config, load_pipeline(model, facts, device), [scene.caption for scene in scenes])


def _check_size(config: NetworkConfig, pipeline: Any) -> None:
    """Refuses image sizes that an untrained pipeline cannot generate."""
    known: Any = find_denoiser(pipeline)
    denoiser = known.config
    patch = family_of(type(pipeline)).packed or denoiser.get("patch_size") or 1
    multiple, largest = PIXELS_PER_LATENT * patch, PIXELS_PER_LATENT * patch * (denoiser.get("pos_embed_max_size") or 0)
    for name in ("height", "width"):
        size = getattr(config, name)
        require(size is None or (size >= multiple and size % multiple == 0), f"network.{name}", size, f"multiples of {multiple}")
        require(size is None or not largest or size <= largest, f"network.{name}", size, f"at most {largest}")


def _untrained(config: NetworkConfig, device: torch.device) -> nn.Module:
    dtype = getattr(torch, config.dtype)
    assert config.untrained is not None
    if config.untrained not in SHAPES:
        return untrained_published(config.untrained, dtype, device)
    torch.manual_seed(0)  # the same weights on every rank
    if config.untrained == "unet":
        assert config.channels is not None and config.transformer_layers is not None
        denoiser: nn.Module = untrained_unet(config.channels, config.transformer_layers)
    else:
        assert config.blocks is not None and config.heads is not None
        denoiser = (untrained_mmdit if config.untrained == "mmdit" else untrained_flux)(config.blocks, config.heads)
    return nn.Module.to(denoiser, device, dtype).eval()  # Diffusers' own warns about casts, which do no harm to random weights


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


def untrained_flux(blocks: int, heads: int) -> FluxTransformer2DModel:
    """FLUX.1's transformer with other depth and width: as many single blocks as ``blocks``, and half as many joint ones."""
    return FluxTransformer2DModel(
        in_channels=16,
        num_layers=-(-blocks // 2),
        num_single_layers=blocks,
        attention_head_dim=HEAD_CHANNELS,
        num_attention_heads=heads,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        axes_dims_rope=(16, 24, 24),
    )


def untrained_published(name: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """A published denoiser with random weights, on a device.

    Raises:
        UsageError: the name is unknown.
    """
    if name not in published.NAMES:
        raise UsageError(f"the untrained network is {name!r}; allowed: {', '.join((*SHAPES, *published.NAMES))}")
    denoiser = nn.Module.to(published.build(name), dtype).to_empty(device=device).eval()
    generator = torch.Generator(device).manual_seed(0)
    for tensor in (*denoiser.parameters(), *denoiser.buffers()):
        if tensor.is_floating_point():
            tensor.data.normal_(0, 0.02, generator=generator)
        else:
            tensor.zero_()
    return denoiser


def untrained_pipeline(denoiser: nn.Module) -> Any:
    """The stock pipeline of a denoiser, without text encoders and autoencoder: it accepts embeddings and returns latents.

    Raises:
        UsageError: the denoiser is not of SDXL's, SD3's or FLUX.1's kind.
    """
    if isinstance(denoiser, SD3Transformer2DModel):
        absent = {**_absent(), "text_encoder_3": None, "tokenizer_3": None}
        pipeline: Any = StableDiffusion3Pipeline(**absent, transformer=denoiser, scheduler=build_scheduler("sd3"))
    elif isinstance(denoiser, FluxTransformer2DModel):
        pipeline = FluxPipeline(**_absent(), transformer=denoiser, scheduler=build_scheduler("sd3"))
    elif isinstance(denoiser, UNet2DConditionModel) and denoiser.config.addition_embed_type == "text_time":
        pipeline = StableDiffusionXLPipeline(**_absent(), unet=denoiser, scheduler=build_scheduler("xl"), add_watermarker=False)
    else:
        raise UsageError(f"timing an untrained {type(denoiser).__name__}; allowed: SDXL's U-Net, SD3's or FLUX.1's transformer")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def random_embeddings(pipeline: Any, images: Sequence[int], tokens: int) -> dict[str, Tensor]:
    """Random prompt embeddings, image i's always the same: what an untrained pipeline gets in place of prompts."""
    denoiser: Any = find_denoiser(pipeline)
    config = denoiser.config
    if isinstance(denoiser, UNet2DConditionModel):
        width = config.cross_attention_dim
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    else:
        width, pooled = config.joint_attention_dim, config.pooled_projection_dim

    def rows(*shape: int, offset: int) -> Tensor:
        values = [torch.randn(shape, generator=torch.Generator().manual_seed(8 * image + offset)) for image in images]
        return torch.stack(values).to(denoiser.device, denoiser.dtype)

    return {
        "prompt_embeds": rows(tokens, width, offset=0),
        "negative_prompt_embeds": rows(tokens, width, offset=1),
        "pooled_prompt_embeds": rows(pooled, offset=2),
        "negative_pooled_prompt_embeds": rows(pooled, offset=3),
    }


def _absent() -> dict[str, None]:
    return dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
