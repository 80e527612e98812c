"""Models that call their denoiser once per branch, or once in all, in the job: from files to images, as the stock pipeline."""

import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, FluxPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from hybridiff.config import DataConfig, JobConfig, ModelConfig, OutputConfig, ParallelConfig, SamplingConfig
from hybridiff.models.decode import decoding_rows
from hybridiff.models.facts import check_model, read_facts
from hybridiff.models.load import load_pipeline
from hybridiff.parallel import Group
from hybridiff.prompts.rows import Sample
from hybridiff.runner.job import check_schedule
from hybridiff.runner.module import CorpusModule
from hybridiff.schedule import Adaptive
from tests.dist.tiny_families import BRANCHES, CASES, autoencoder, flux2_autoencoder, noise

LETTERS = ["<|startoftext|>", "<|endoftext|>", *string.ascii_lowercase, *(f"{c}</w>" for c in string.ascii_lowercase)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FLUX of tiny networks with both of its text encoders."""
    path: Path = tmp_path_factory.mktemp("flux")
    tiny = BRANCHES["flux"].make()
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("\u2581", -2.0), *((c, -3.0) for c in string.ascii_lowercase)]
    t5 = T5Config(vocab_size=len(vocabulary), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    size = {"vocab_size": len(LETTERS), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    ids = {"num_attention_heads": 2, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    torch.manual_seed(0)
    FluxPipeline(
        scheduler=tiny.scheduler,
        vae=autoencoder(),
        text_encoder=CLIPTextModel(CLIPTextConfig(**size, **ids)),
        tokenizer=CLIPTokenizer(vocab={token: i for i, token in enumerate(LETTERS)}, merges=[], model_max_length=77),
        text_encoder_2=T5EncoderModel(t5),
        tokenizer_2=T5Tokenizer(vocab=vocabulary, extra_ids=0),
        transformer=tiny.transformer,
    ).save_pretrained(path)
    return path


def module_of(model: Path, **sampling: Any) -> CorpusModule:
    config = JobConfig(
        ModelConfig(str(model), dtype="float32"),
        SamplingConfig(steps=10, height=32, width=16, **sampling),
        ParallelConfig(schedule=Adaptive(tolerance=3.0, min_full_steps=3)),
        DataConfig(prompts="unused.txt"),
        OutputConfig(url="unused"),
    )
    facts = read_facts(config.model)
    assert (facts.multiple, facts.default_size) == (8, 1024)
    check_model(config.model, config.sampling, facts)
    check_schedule(config, facts)
    module = CorpusModule(config, facts)
    module.pipeline = load_pipeline(config.model, facts)
    return module


@pytest.mark.parametrize(("guided", "negative"), [(False, None), (True, "blue"), (True, None)])
def test_a_model_of_fluxs_shape_generates(model: Path, guided: bool, negative: str | None) -> None:
    options = {"true_cfg_scale": 3.0} if guided else {}
    module = module_of(model, guidance_scale=3.5, options=options)
    samples = tuple(Sample(prompt, prompt, negative, i, {}) for i, prompt in enumerate(("a red", "a red circle")))
    stock = module.sample(samples, output_type="pt")
    module.parallelize(Group())
    results = module.generate(samples)
    assert [result.error for result in results] == [None, None]
    for result, pixels in zip(results, stock, strict=True):
        assert result.image is not None and result.image.shape == (32, 16, 3)
        distance = (torch.from_numpy(result.image).permute(2, 0, 1) / 255 - pixels).abs().mean()
        assert distance < 0.05 < pixels.std()
    assert results[0].steps_full < 10 and len(results[0].discrepancy) == (results[0].steps_full if guided else 0)
    module.teardown("predict")


def test_images_do_not_depend_on_the_rows_that_other_ranks_decode(model: Path) -> None:
    module = module_of(model, guidance_scale=3.5)
    samples = tuple(Sample(str(i), "a red", None, i, {}) for i in range(3))
    module.parallelize(Group())
    images, finite = module.sample_decoded(samples)
    alone, _ = module.sample_decoded(samples[1:2])
    assert finite.tolist() == [1, 1, 1] and (images[1].int() - alone[0].int()).abs().max() <= 1
    with decoding_rows(module.pipeline.vae, (1, 2, 2)) as decoded:
        some = module.sample(samples, output_type="pt")
    assert decoded == {1: True, 2: True} and "decode" not in vars(module.pipeline.vae)
    assert (some[0] == 0.5).all() and (some[1].permute(1, 2, 0) * 255 - images[1]).abs().max() <= 1
    module.teardown("predict")


AUTOENCODERS = {
    "flux2-klein": flux2_autoencoder,
    "flux2-dev": flux2_autoencoder,
    "bria": autoencoder,
    "chroma": autoencoder,
    "ernie": flux2_autoencoder,
}


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_latents_are_decoded_as_the_pipeline_does(name: str) -> None:
    squares = {"in_channels": 16, "out_channels": 16} if name == "ernie" else {}  # 2 x 2 latents of 4 channels
    case = replace(CASES[name], config=CASES[name].config | squares, parts=lambda: {"vae": AUTOENCODERS[name]()})
    pipeline = case.make()
    stock = case.generate(pipeline, 3, 2, output_type="pt")
    with decoding_rows(pipeline.vae, (1, 2)) as finite:
        decoded = case.generate(pipeline, 3, 2, output_type="pt")
    assert finite == {1: True, 2: True}
    torch.testing.assert_close(decoded[1:], stock[1:], atol=1e-5, rtol=1e-5)
    with decoding_rows(pipeline.vae, (0,)) as finite:
        latents = case.generate(pipeline, 3, 2)
    assert finite == {} and latents.isfinite().all()


def test_an_image_that_is_not_finite_is_noticed() -> None:
    vae = autoencoder()
    latents = noise(0, 3, 4, 2, 2)
    latents[1, 0, 0, 0] = float("nan")
    with decoding_rows(vae, (0, 1, 2)) as finite:
        assert isinstance(vae.decode(latents), diffusers.models.autoencoders.vae.DecoderOutput)
    assert finite == {0: True, 1: False, 2: True} and isinstance(vae, AutoencoderKL)
