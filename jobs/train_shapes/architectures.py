"""The architectures of the bundled models: SDXL's, SD3's and FLUX.1's, small enough to train on two cores."""

import string
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from jobs.train_shapes.scenes import COLOURS, IMAGE_SIZE, POSITIONS, SHAPES, SIZES

TEXT_WINDOW = 24  # tokens, start and end included; the longest caption has 21
TEXT_WIDTH = 64
LATENT_CHANNELS = 4
LATENT_SIZE = IMAGE_SIZE // 4

Denoiser: TypeAlias = UNet2DConditionModel | SD3Transformer2DModel | FluxTransformer2DModel
Pipeline: TypeAlias = StableDiffusionXLPipeline | StableDiffusion3Pipeline | FluxPipeline
TextEncoder: TypeAlias = CLIPTextModel | T5EncoderModel


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer that knows each caption word as one token and spells out every other text in bytes."""
    byte_symbols = _byte_symbols()
    vocabulary = {token: i for i, token in enumerate([*byte_symbols, *(f"{s}</w>" for s in byte_symbols)])}
    merges: list[tuple[str, str]] = []
    for word in _caption_words():
        parts = _merged([*word[:-1], f"{word[-1]}</w>"], merges)
        while len(parts) > 1:  # pieces that earlier words' merges do not join get new merges
            merges.append((parts[0], parts[1]))
            vocabulary[parts[0] + parts[1]] = len(vocabulary)
            parts = [parts[0] + parts[1], *parts[2:]]
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TEXT_WINDOW)


def build_text_encoder(layers: int, projection: bool, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A CLIP text encoder, with or without the projection of its pooled output."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=TEXT_WINDOW,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def build_t5_tokenizer() -> T5Tokenizer:
    """A T5 tokenizer that knows each caption word as one token and spells out other text in printable ASCII characters."""
    words = [(f"\u2581{word}", -1.0) for word in _caption_words()]
    characters = [(c, -10.0) for c in sorted(string.ascii_letters + string.digits + string.punctuation)]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    return T5Tokenizer(vocab=special + words + characters, extra_ids=0, model_max_length=TEXT_WINDOW)


def build_t5_encoder(tokenizer: T5Tokenizer) -> T5EncoderModel:
    """A T5 encoder; FluxPipeline passes it no attention mask, so that it reads the padding too."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=TEXT_WIDTH,
        d_kv=TEXT_WIDTH // 4,
        d_ff=2 * TEXT_WIDTH,
        num_layers=3,
        num_heads=4,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=32,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return T5EncoderModel(config)


def build_autoencoder() -> AutoencoderKL:
    """Images (batch, 3, 64, 64) to latents (batch, 4, 16, 16) and back, in AutoencoderKL's architecture."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        shift_factor=0.0,
        force_upcast=False,
    )


def build_denoiser(kind: str) -> Denoiser:
    """An untrained denoiser with the topology of SDXL's U-Net (``xl``), SD3's MMDiT (``sd3``) or FLUX.1's (``flux``)."""
    if kind == "xl":
        return UNet2DConditionModel(
            sample_size=LATENT_SIZE,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(48, 64, 96),
            layers_per_block=1,
            transformer_layers_per_block=(1, 1, 2),
            attention_head_dim=(1, 2, 3),  # the number of heads, despite its name
            cross_attention_dim=2 * TEXT_WIDTH,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=16,
            projection_class_embeddings_input_dim=TEXT_WIDTH + 6 * 16,
            norm_num_groups=8,
        )
    if kind == "flux":
        model = FluxTransformer2DModel(
            in_channels=4 * LATENT_CHANNELS,  # a token packs 2 x 2 latents
            num_layers=2,
            num_single_layers=4,
            attention_head_dim=32,
            num_attention_heads=4,
            joint_attention_dim=TEXT_WIDTH,
            pooled_projection_dim=TEXT_WIDTH,
            guidance_embeds=True,
            axes_dims_rope=(4, 14, 14),
        )
        zero_modulation(model)
        return model
    return SD3Transformer2DModel(
        sample_size=LATENT_SIZE,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=8,
        attention_head_dim=32,
        num_attention_heads=3,
        joint_attention_dim=2 * TEXT_WIDTH,
        caption_projection_dim=96,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=LATENT_SIZE,
        qk_norm="rms_norm",
    )


def zero_modulation(model: FluxTransformer2DModel) -> None:
    """Makes each block the identity and the output zero at first (adaLN-Zero, arXiv 2212.09748), which trains faster."""
    blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
    layers = [module.linear for block in blocks for name, module in block.named_children() if hasattr(module, "linear")]
    for layer in (*layers, model.norm_out.linear, model.proj_out):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


def build_scheduler(kind: str) -> DDIMScheduler | FlowMatchEulerDiscreteScheduler:
    """DDIM on a v-prediction with zero terminal SNR (arXiv 2305.08891), or flow matching."""
    if kind == "xl":
        return DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            clip_sample=False,
        )
    if kind == "flux":  # FLUX.1-dev's: the shift grows with the number of tokens
        return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return FlowMatchEulerDiscreteScheduler()


def build_pipeline(
    kind: str, autoencoder: AutoencoderKL, text_encoders: tuple[TextEncoder, TextEncoder], denoiser: Denoiser
) -> Pipeline:
    """The stock pipeline of a kind, with these parts."""
    tokenizers = build_tokenizers(kind)
    common = {
        "vae": autoencoder,
        "text_encoder": text_encoders[0],
        "text_encoder_2": text_encoders[1],
        "tokenizer": tokenizers[0],
        "tokenizer_2": tokenizers[1],
        "scheduler": build_scheduler(kind),
    }
    if kind == "xl":
        return StableDiffusionXLPipeline(**common, unet=denoiser, add_watermarker=False)
    if kind == "flux":
        return FluxPipeline(**common, transformer=denoiser)
    return StableDiffusion3Pipeline(**common, transformer=denoiser, text_encoder_3=None, tokenizer_3=None)


def build_tokenizers(kind: str) -> tuple[CLIPTokenizer, CLIPTokenizer | T5Tokenizer]:
    """The tokenizers of a kind's two text encoders."""
    return build_tokenizer(), build_t5_tokenizer() if kind == "flux" else build_tokenizer()


def build_text_encoders(kind: str) -> tuple[TextEncoder, TextEncoder]:
    """The two text encoders of a kind: CLIP, and T5 for FLUX.1; the first of SDXL and of FLUX.1 has no projection."""
    tokenizers = build_tokenizers(kind)
    first = build_text_encoder(2, kind == "sd3", tokenizers[0])
    return first, build_t5_encoder(tokenizers[1]) if kind == "flux" else build_text_encoder(3, True, tokenizers[1])


def save_pipeline(pipeline: Pipeline, directory: Path) -> None:
    """Writes a pipeline in Diffusers' directory format; the large weights as half-precision safetensors.

    The text encoders stay in single precision: Transformers loads a half-precision file as half precision where Diffusers loads
    it as single, and the two would not fit together.
    """
    pipeline.vae.half()
    (pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer).half()
    pipeline.save_pretrained(directory, safe_serialization=True)


def _caption_words() -> list[str]:
    texts: Iterable[str] = (*SHAPES, *COLOURS, *SIZES, *POSITIONS, "a and on background")
    return sorted({word for text in texts for word in text.split()})


def _merged(parts: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """Applies byte-pair merges in the order in which they were learnt."""
    for left, right in merges:
        i = 0
        while i < len(parts) - 1:
            if (parts[i], parts[i + 1]) == (left, right):
                parts[i : i + 2] = [left + right]
            i += 1
    return parts


def _byte_symbols() -> list[str]:
    """The 256 printable symbols of byte-level BPE, in order (GPT-2's table)."""
    return sorted(ByteLevel.alphabet())
