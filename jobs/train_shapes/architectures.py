"""The architectures of the bundled models: SDXL's and SD3's, small enough to train on two cores."""

from collections.abc import Iterable
from pathlib import Path

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from jobs.train_shapes.scenes import COLOURS, IMAGE_SIZE, POSITIONS, SHAPES, SIZES

KINDS = ("xl", "sd3")
TEXT_WINDOW = 24  # tokens, start and end included; the longest caption has 19
TEXT_WIDTH = 64
LATENT_CHANNELS = 4
LATENT_SIZE = IMAGE_SIZE // 4


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


def build_denoiser(kind: str) -> UNet2DConditionModel | SD3Transformer2DModel:
    """An untrained denoiser with the topology of SDXL's U-Net (``xl``) or SD3's MMDiT (``sd3``)."""
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
    return FlowMatchEulerDiscreteScheduler()


def build_pipeline(
    kind: str,
    autoencoder: AutoencoderKL,
    text_encoders: tuple[CLIPTextModel, CLIPTextModel],
    denoiser: UNet2DConditionModel | SD3Transformer2DModel,
) -> StableDiffusionXLPipeline | StableDiffusion3Pipeline:
    """The stock pipeline of a kind, with these parts."""
    common = {
        "vae": autoencoder,
        "text_encoder": text_encoders[0],
        "text_encoder_2": text_encoders[1],
        "tokenizer": build_tokenizer(),
        "tokenizer_2": build_tokenizer(),
        "scheduler": build_scheduler(kind),
    }
    if kind == "xl":
        return StableDiffusionXLPipeline(**common, unet=denoiser, add_watermarker=False)
    return StableDiffusion3Pipeline(**common, transformer=denoiser, text_encoder_3=None, tokenizer_3=None)


def build_text_encoders(kind: str, tokenizer: CLIPTokenizer) -> tuple[CLIPTextModel, CLIPTextModel]:
    """The two text encoders of a kind; SDXL's first has no projection."""
    return (
        build_text_encoder(2, kind == "sd3", tokenizer),
        build_text_encoder(3, True, tokenizer),
    )


def save_pipeline(pipeline: StableDiffusionXLPipeline | StableDiffusion3Pipeline, directory: Path) -> None:
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
