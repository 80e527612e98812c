"""The bundled models follow their prompts, and where a call computes both branches, these disagree as the method expects."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hybridiff import parallelize
from hybridiff.config import ModelConfig
from hybridiff.config.model import BUNDLED
from hybridiff.models.facts import read_facts
from hybridiff.models.load import load_pipeline
from jobs.train_shapes.evaluation import Score, held_out_scenes, score_pipeline
from jobs.train_shapes.evaluation import score as score_images

LARGEST_BYTES = 12_000_000
STEPS = 50
SCENES = 64
DOUBLED = ("shapes-xl", "shapes-sd3")  # guidance by a doubled batch


@cache
def _load(name: str) -> Any:
    model = ModelConfig(path=name)
    return load_pipeline(model, read_facts(model))


@pytest.fixture(params=BUNDLED)
def pipeline(request: pytest.FixtureRequest) -> Any:
    return _load(request.param)


@pytest.mark.parametrize("name", BUNDLED)
def test_it_is_small_and_in_safetensors(name: str) -> None:
    files = [path for path in Path(read_facts(ModelConfig(path=name)).source).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LARGEST_BYTES
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt"}


def test_it_has_the_topology_of_its_model(pipeline: Any) -> None:
    if hasattr(pipeline, "unet"):
        config = pipeline.unet.config
        assert type(pipeline).__name__ == "StableDiffusionXLPipeline"
        assert tuple(config.down_block_types) == ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
        assert config.addition_embed_type == "text_time" and config.transformer_layers_per_block[-1] > 1
        scheduler = pipeline.scheduler.config
        assert (scheduler.prediction_type, scheduler.timestep_spacing, scheduler.rescale_betas_zero_snr) == (
            "v_prediction",
            "trailing",
            True,
        )
    elif hasattr(pipeline, "text_encoder_3"):
        assert type(pipeline).__name__ == "StableDiffusion3Pipeline"
        assert len(pipeline.transformer.transformer_blocks) >= 8
        assert pipeline.text_encoder_3 is None
    else:
        assert type(pipeline).__name__ == "FluxPipeline"
        assert len(pipeline.transformer.transformer_blocks) >= 2 and len(pipeline.transformer.single_transformer_blocks) >= 4
        assert pipeline.transformer.config.guidance_embeds
        assert pipeline.transformer.config.in_channels == 4 * pipeline.vae.config.latent_channels
        assert (type(pipeline.text_encoder).__name__, type(pipeline.text_encoder_2).__name__) == (
            "CLIPTextModel",
            "T5EncoderModel",
        )
        assert pipeline.scheduler.config.use_dynamic_shifting
    for encoder, tokenizer in (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")):
        assert getattr(pipeline, encoder).config.vocab_size == len(getattr(pipeline, tokenizer))
    assert type(pipeline.vae).__name__ == "AutoencoderKL"


def _assert_prompts_are_followed(score: Score) -> None:
    assert score.colour >= 0.9
    assert score.background >= 0.9
    assert score.shape >= 0.8
    assert score.overlap is not None and score.overlap >= 0.85


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", DOUBLED)
def test_it_follows_its_prompts_and_its_discrepancy_is_u_shaped(name: str) -> None:
    pipeline = _load(name)
    handle = parallelize(pipeline, group_size=1)
    score = score_pipeline(pipeline, held_out_scenes(SCENES), STEPS)
    curve = torch.tensor(handle.trace.curves())[..., 1].mean(0)  # of pairs (step, discrepancy)
    handle.remove()
    _assert_prompts_are_followed(score)
    middle = curve[STEPS // 4 : -STEPS // 8].min()
    assert curve[0] >= 3 * middle  # high at the start
    assert curve[-1] >= 1.1 * middle  # and rising again at the end


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "options",
    [{"guidance_scale": 5.0}, {"guidance_scale": 1.0, "true_cfg_scale": 5.0}],
    ids=["guidance embedding, one call", "true guidance, two calls"],
)
def test_one_flux_checkpoint_follows_its_prompts_by_either_guidance(options: dict[str, float]) -> None:
    _assert_prompts_are_followed(score_pipeline(_load("shapes-flux"), held_out_scenes(SCENES), STEPS, **options))


def test_flux_works_with_any_number_of_padding_tokens() -> None:
    """FluxPipeline pads a prompt to 512 tokens by default, and masks nothing."""
    pipeline, scenes = _load("shapes-flux"), [scene for scene in held_out_scenes(8) if len(scene.figures) == 1][:4]
    options = {"height": 64, "width": 64, "num_inference_steps": 10, "guidance_scale": 5.0}
    captions = [scene.caption for scene in scenes]
    for padding in ({}, {"max_sequence_length": 24}):
        generators = [torch.Generator().manual_seed(i) for i in range(len(captions))]
        images = pipeline(captions, generator=generators, **options, **padding).images
        score = score_images([np.asarray(image) for image in images], scenes)
        assert score.colour == score.background == 1


def test_every_scheduler_starts_at_the_same_noise_level_whatever_the_number_of_steps(pipeline: Any) -> None:
    starts = set()
    shift = {"mu": 0.5} if pipeline.scheduler.config.get("use_dynamic_shifting") else {}
    for steps in (10, 50, 400):
        pipeline.scheduler.set_timesteps(steps, **shift)
        starts.add(float(pipeline.scheduler.timesteps[0]))
    assert len(starts) == 1
