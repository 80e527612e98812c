"""A model of PixArt's shape, saved as Diffusers saves it, from its files to images."""

import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, PixArtAlphaPipeline
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from hybridiff.config import DataConfig, JobConfig, ModelConfig, OutputConfig, ParallelConfig, SamplingConfig
from hybridiff.errors import UsageError
from hybridiff.models.facts import check_model, check_pipeline, read_facts
from hybridiff.models.families import FAMILIES
from hybridiff.models.load import load_pipeline
from hybridiff.parallel import Group
from hybridiff.prompts.rows import Sample
from hybridiff.runner.module import CorpusModule
from tests.dist.tiny import tiny_pixart, tiny_sana

SIZE = 96


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("pixart")
    torch.manual_seed(0)
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("\u2581", -2.0), *((c, -3.0) for c in string.ascii_lowercase)]
    text = T5Config(vocab_size=len(vocabulary), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    pipeline = PixArtAlphaPipeline(
        tokenizer=T5Tokenizer(vocab=vocabulary, extra_ids=0),
        text_encoder=T5EncoderModel(text),
        vae=AutoencoderKL(**blocks, block_out_channels=(8,) * 4, latent_channels=4, norm_num_groups=4),
        transformer=(tiny := tiny_pixart()).transformer,
        scheduler=tiny.scheduler,
    )
    pipeline.save_pretrained(path)
    return path


def test_rows_are_generated_as_asked(model: Path) -> None:
    sampling = SamplingConfig(steps=8, height=SIZE, width=64, guidance_scale=3.0, max_sequence_length=8)
    config = JobConfig(
        ModelConfig(str(model)), sampling, ParallelConfig(), DataConfig(prompts="unused.txt"), OutputConfig(url="unused")
    )
    facts = read_facts(config.model)
    assert (facts.default_size, facts.multiple, facts.denoiser) == (1024, 16, "PixArtTransformer2DModel")
    check_model(config.model, sampling, facts)
    module = CorpusModule(config, facts)
    module.pipeline = load_pipeline(config.model, facts)
    module.parallelize(Group())
    samples = tuple(Sample(prompt, prompt, None, i, {}) for i, prompt in enumerate(("a red", "a red circle")))
    results = module.generate(samples)
    assert [result.error for result in results] == [None, None]
    assert [result.prompt_truncated for result in results] == [False, True]
    assert {result.image.shape for result in results if result.image is not None} == {(SIZE, 64, 3)}
    assert {len(result.discrepancy) for result in results} == {results[0].steps_full}
    negative = module.sample(tuple(replace(sample, negative_prompt="blue") for sample in samples))
    assert not torch.equal(negative, module.sample(samples))
    module.teardown("predict")


def test_the_size_of_sanas_images_is_known_from_its_autoencoder(tmp_path: Path) -> None:
    pipeline = tiny_sana()
    pipeline.register_modules(vae=AutoencoderDC(**SIX_LEVELS))
    pipeline.save_pretrained(tmp_path)
    facts = read_facts(ModelConfig(str(tmp_path)))
    assert (facts.default_size, facts.multiple) == (32 * pipeline.transformer.config.sample_size, 32)


SIX_LEVELS: dict[str, Any] = {
    "latent_channels": 4,
    "encoder_block_types": ("ResBlock",) * 6,
    "decoder_block_types": ("ResBlock",) * 6,
    "encoder_block_out_channels": (8,) * 6,
    "decoder_block_out_channels": (8,) * 6,
    "encoder_layers_per_block": (1,) * 6,
    "decoder_layers_per_block": (1,) * 6,
    "encoder_qkv_multiscales": ((),) * 6,
    "decoder_qkv_multiscales": ((),) * 6,
}


def test_a_size_that_the_pipeline_would_scale_is_refused(model: Path) -> None:
    given = ModelConfig(str(model))
    facts = replace(read_facts(given), pipeline="HiDreamImagePipeline")
    for height, width in ((None, None), (1024, 1024), (768, 1360)):
        check_model(given, SamplingConfig(height=height, width=width), facts)
    message = r"sampling.height is 512 and sampling.width 512; allowed: sizes of about 1 million pixels, .* such as 1024 and"
    with pytest.raises(UsageError, match=message):
        check_model(given, SamplingConfig(height=512, width=512), facts)
    with pytest.raises(UsageError, match=r"sampling.height is 512 and sampling.width 1024; .* such as 720 and 1440"):
        check_model(given, SamplingConfig(height=512), facts)


PIPELINES = {
    "StableDiffusionXLImg2ImgPipeline": "takes an image",
    "StableDiffusionXLControlNetPipeline": "takes an image",
    "QwenImageEditPipeline": "takes an image",
    "StableDiffusionInstructPix2PixPipeline": "takes an image",
    "WanPipeline": "generates video",
    "LTXPipeline": "generates video",
    "StableVideoDiffusionPipeline": "generates video",
    "WanVideoToVideoPipeline": "generates video",
    "SanaVideoPipeline": "generates video",
    "StableAudio3Pipeline": "generates audio",
    "HunyuanImageRefinerPipeline": "takes an image",
    "StableDiffusionXLAdapterPipeline": "takes an image",
    "KandinskyV22Pipeline": "takes image_embeds, negative_image_embeds",
    "FluxModularPipeline": "is made of blocks",
    "DiTPipeline": "takes class_labels",
}


@pytest.mark.parametrize("name", PIPELINES)
def test_what_the_job_cannot_generate_is_refused_before_it_is_loaded(model: Path, name: str) -> None:
    facts = replace(read_facts(ModelConfig(str(model))), pipeline=name)
    with pytest.raises(UsageError, match=f"a {name}, which {PIPELINES[name]}; allowed: pipelines that generate images"):
        check_model(ModelConfig(str(model)), SamplingConfig(), facts)


NOT_IN_JOBS = ("Kolors", "Modular", "StableCascade", "Wuerstchen")  # how the library's users call them is known nonetheless


@pytest.mark.parametrize("name", [name for name in FAMILIES if not name.startswith(NOT_IN_JOBS)])
def test_every_text_to_image_family_passes_the_check(model: Path, name: str) -> None:
    check_pipeline("here", getattr(diffusers, name))


def test_further_options_are_those_of_the_pipeline(model: Path) -> None:
    facts = replace(read_facts(ModelConfig(str(model))), pipeline="QwenImagePipeline")
    check_model(ModelConfig(str(model)), SamplingConfig(options={"true_cfg_scale": 4.0}), facts)
    for option in ("true_cfg", "generator", "height"):
        with pytest.raises(
            UsageError, match=f"sampling.options is '{option}'; allowed: options of QwenImagePipeline .*true_cfg_scale"
        ):
            check_model(ModelConfig(str(model)), SamplingConfig(options={option: 4}), facts)


def test_a_negative_prompt_is_refused_where_the_pipeline_has_none(model: Path) -> None:
    sampling = SamplingConfig(negative_prompt="ugly")
    check_model(ModelConfig(str(model)), sampling, read_facts(ModelConfig(str(model))))
    facts = replace(read_facts(ModelConfig(str(model))), pipeline="Flux2Pipeline")
    with pytest.raises(UsageError, match=r"sampling\.negative_prompt is 'ugly'; allowed: none with Flux2Pipeline"):
        check_model(ModelConfig(str(model)), sampling, facts)
    facts = replace(facts, pipeline="FluxPipeline")
    with pytest.raises(UsageError, match=r"allowed: none unless sampling\.options has a true_cfg_scale above 1"):
        check_model(ModelConfig(str(model)), sampling, facts)
    check_model(ModelConfig(str(model)), replace(sampling, options={"true_cfg_scale": 3.0}), facts)
    check_model(ModelConfig(str(model)), sampling, replace(facts, pipeline="QwenImagePipeline"))  # 4 by default
