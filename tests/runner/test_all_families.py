"""Pipelines of all families in the job's module: prompts in words to images, as the stock pipeline makes them."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch

from hybridiff.config import DataConfig, JobConfig, ModelConfig, OutputConfig, ParallelConfig, SamplingConfig
from hybridiff.models.decode import to_images
from hybridiff.models.facts import read_facts
from hybridiff.models.load import takes_option
from hybridiff.parallel import Group
from hybridiff.prompts.rows import Sample
from hybridiff.runner.module import CorpusModule
from hybridiff.schedule import Adaptive, Full, Schedule
from tests.dist.tiny_families import CASES, SINGLE, Case, flux2_autoencoder

STEPS = 8
pytestmark = pytest.mark.slow


def video_autoencoder(kind: str = "AutoencoderKLQwenImage", **options: Any) -> Any:
    """One that takes an image for a video of one frame, with latents that are normalised by channel."""
    torch.manual_seed(0)
    size = {
        "base_dim": 8,
        "z_dim": 4,
        "num_res_blocks": 1,
        "latents_mean": [0.1, -0.2, 0.3, 0.0],
        "latents_std": [1.5, 2.0, 0.5, 1.0],
    }
    return getattr(diffusers, kind)(**size | options).eval()


def image_autoencoder(channels: int = 4, **more: Any) -> Any:
    """One of scale 8, whose latents are shifted; pipelines that do not know of that leave it."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    size = {"block_out_channels": [8] * 4, "norm_num_groups": 4, "latent_channels": channels, "shift_factor": 0.3}
    vae = diffusers.AutoencoderKL(**size, **blocks)
    vae.register_to_config(**more)
    return vae.eval()


def hunyuan_autoencoder() -> Any:
    torch.manual_seed(0)
    size = {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "sample_size": 256, "scaling_factor": 0.8}
    blocks = {"block_out_channels": (32,) * 6, "layers_per_block": 1, "spatial_compression_ratio": 32}
    return diffusers.AutoencoderKLHunyuanImage(**size, **blocks).eval()


def deep_autoencoder() -> Any:
    torch.manual_seed(0)
    names = ("encoder_block_types", "decoder_block_types", "encoder_block_out_channels", "decoder_block_out_channels")
    sizes = dict(zip(names, (("ResBlock",) * 6, ("ResBlock",) * 6, (8,) * 6, (8,) * 6), strict=True))
    layers = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in (("layers_per_block", (1,) * 6),)}
    scales = {f"{side}_qkv_multiscales": ((),) * 6 for side in ("encoder", "decoder")}
    return diffusers.AutoencoderDC(latent_channels=4, **sizes, **layers, **scales).eval()


AUTOENCODERS: dict[str, Callable[[], Any]] = {
    "flux2-klein": flux2_autoencoder,
    "flux2-dev": flux2_autoencoder,
    "ernie": flux2_autoencoder,
    "qwen": video_autoencoder,
    "qwen-without-guidance": video_autoencoder,
    "krea2": video_autoencoder,
    "bria-fibo": functools.partial(video_autoencoder, "AutoencoderKLWan"),
    "longcat": functools.partial(image_autoencoder, 16),
    "glm": functools.partial(image_autoencoder, latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 2.0, 0.5, 1.0]),
    "qwen-2.1": functools.partial(
        video_autoencoder,
        "AutoencoderKLQwenImage21",
        decoder_base_dim=8,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        temperal_downsample=[False, True, True],
        latents_mean=[0.1] * 16,
        latents_std=[1.5] * 16,
    ),
    "hunyuan-image": hunyuan_autoencoder,
    "sana-sprint": deep_autoencoder,
}


def guidance_of(case: Case) -> float:
    return case.options.get("guidance_scale", 5.0)


def in_words(case: Case, pipeline: Any) -> Any:
    """The pipeline, which takes embeddings, as one with text encoders: prompts in words choose rows of the embeddings."""
    kind = type(pipeline)

    @functools.wraps(kind.__call__)
    def call(self: Any, prompt: list[str], **options: Any) -> Any:
        assert prompt == [f"prompt {row}" for row in range(len(prompt))]
        if "negative_prompt" in options:  # of pipelines that need one for guidance
            assert options["negative_prompt"] in (None, [""] * len(prompt))
            options["negative_prompt"] = None
        return kind.__call__(self, **options | case.prompts(len(prompt)))

    pipeline.__class__ = type(kind.__name__, (kind,), {"__call__": call})
    return pipeline


def module_of(case: Case, schedule: Schedule) -> CorpusModule:
    given = {name: value for name, value in case.options.items() if name != "guidance_scale"}
    sampling = SamplingConfig(steps=STEPS, height=case.pixels, width=case.pixels, options=given, guidance_scale=guidance_of(case))
    config = JobConfig(
        ModelConfig("shapes-xl"),
        sampling,
        ParallelConfig(schedule=schedule),
        DataConfig(prompts="unused.txt"),
        OutputConfig(url="unused"),
    )
    module = CorpusModule(config, read_facts(config.model))
    module.pipeline = in_words(case, case.make())
    module.parallelize(Group())
    return module


@pytest.mark.parametrize("name", CASES)
def test_the_job_generates_what_the_stock_pipeline_does(name: str) -> None:
    case = CASES[name]
    parts, vae = case.parts(), AUTOENCODERS.get(name, image_autoencoder)
    squares = {"in_channels": 16, "out_channels": 16} if name == "ernie" else {}  # 2 x 2 latents of 4 channels
    case = replace(case, config=case.config | squares, parts=lambda: parts | {"vae": vae()})
    images = min(2, case.most)
    samples = tuple(Sample(f"key-{row}", f"prompt {row}", None, row, {}) for row in range(images))
    pipeline = case.make()
    scale = {"guidance_scale": guidance_of(case)} if takes_option(pipeline, "guidance_scale") else {}
    stock = to_images(case.generate(pipeline, images, STEPS, output_type="pt", **scale)).float()
    assert stock.std() > 1, "it is more than one colour"
    distances = []
    for schedule in (Full(), Adaptive(tolerance=3.0, min_full_steps=3)):
        module = module_of(case, schedule)
        results = module.generate(samples)
        assert [result.error for result in results] == [None] * images
        found = torch.stack([torch.from_numpy(result.image) for result in results]).float()
        distances.append((found - stock).abs())
        assert (results[0].steps_full < STEPS) == isinstance(schedule, Adaptive)
        assert bool(results[0].discrepancy) == (name not in SINGLE)
        module.teardown("predict")
    assert distances[0].max() <= 1 and 0 < distances[1].mean() < stock.std()
