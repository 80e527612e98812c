"""Heights and widths that a model takes, from its configuration at its published size."""

from typing import Any

import diffusers
import pytest

from hybridiff.models.facts import latent_sides, positions_of_side
from hybridiff.models.families import family_of

KL = {"block_out_channels": [128, 256, 512, 512]}
VIDEO = {"temperal_downsample": [False, True, True]}


@pytest.mark.parametrize(
    ("pipeline", "denoiser", "vae", "multiple"),
    [
        ("StableDiffusionXLPipeline", {}, KL, 8),
        ("StableDiffusion3Pipeline", {"patch_size": 2}, KL, 16),
        ("SanaPipeline", {"patch_size": 1}, {"encoder_block_out_channels": [128] * 6}, 32),
        ("FluxPipeline", {"patch_size": 1}, KL, 16),
        ("QwenImagePipeline", {"patch_size": 2}, VIDEO, 16),  # 1328 x 1328 is its own size
        ("QwenImage21Pipeline", {"patch_size": 1}, VIDEO, 32),
        ("Krea2Pipeline", {}, VIDEO, 16),
        ("ZImagePipeline", {"all_patch_size": [2]}, KL, 16),
        ("GlmImagePipeline", {"patch_size": 2}, KL, 32),
        ("HunyuanImagePipeline", {"patch_size": [1, 1]}, {"block_out_channels": [128] * 6}, 64),
    ],
)
def test_published_models(pipeline: str, denoiser: dict[str, Any], vae: dict[str, Any], multiple: int) -> None:
    scale, patch = latent_sides(family_of(getattr(diffusers, pipeline)), denoiser, vae)
    assert scale * patch == multiple


def test_positions_bound_the_side() -> None:
    """Published models: Stable Diffusion 3.5 medium, AuraFlow 0.3 of up to 1536 x 1536 pixels, PixArt without a bound."""
    assert positions_of_side("SD3Transformer2DModel", {"pos_embed_max_size": 384}) == 384
    assert positions_of_side("AuraFlowTransformer2DModel", {"pos_embed_max_size": 9216}) == 1536 // 16
    assert positions_of_side("PixArtTransformer2DModel", {"pos_embed_max_size": None}) is None
