"""Lumina-Next, a stock pipeline that doubles its batch as [conditional, unconditional]."""

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LuminaNextDiT2DModel, LuminaPipeline
from torch import Tensor

from hybridiff.models.families import family_of
from hybridiff.parallel import parallelize
from hybridiff.parallel.reference import emulate
from hybridiff.schedule import Adaptive
from tests.dist.tiny import tiny_sd3
from tests.parallel.scripted import Scripted

CONFIG = {
    "sample_size": 16,
    "in_channels": 4,
    "hidden_size": 24,
    "num_layers": 2,
    "num_attention_heads": 3,
    "num_kv_heads": 1,
    "multiple_of": 16,
    "cross_attention_dim": 16,
}


def tiny_lumina() -> LuminaPipeline:
    torch.manual_seed(0)
    transformer = LuminaNextDiT2DModel(**CONFIG).eval()
    for parameter in transformer.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    nothing = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    pipeline = LuminaPipeline(transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), **nothing)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(pipeline: LuminaPipeline, images: int = 2) -> Tensor:
    noise = torch.Generator().manual_seed(1)
    prompts = {name: torch.randn(images, 5, 16, generator=noise) for name in ("prompt_embeds", "negative_prompt_embeds")}
    masks = {f"{name}prompt_attention_mask": torch.ones(images, 5, dtype=torch.bool) for name in ("", "negative_")}
    generators = [torch.Generator().manual_seed(i) for i in range(images)]
    options = {"height": 128, "width": 128, "guidance_scale": 4.0, "num_inference_steps": 8, "output_type": "latent"}
    latents: Tensor = pipeline(generator=generators, **prompts, **masks, **options).images
    return latents


def test_full_steps_are_the_stock_pipelines() -> None:
    pipeline = tiny_lumina()
    assert family_of(type(pipeline)).conditional_first and not family_of(type(tiny_sd3())).conditional_first
    stock = generate(pipeline)
    with parallelize(pipeline, "full"):
        assert torch.equal(generate(pipeline), stock)
    with emulate(pipeline, "full", 2):
        torch.testing.assert_close(generate(pipeline), stock, atol=1e-4, rtol=1e-4)


def test_half_and_skip_steps_stay_near_the_stock_pipelines() -> None:
    pipeline = tiny_lumina()
    stock = generate(pipeline)
    largest = stock.abs().max()
    forward, prompts = pipeline.transformer.forward, list[Tensor]()

    def recording(**inputs: Any) -> Any:
        prompts.append(inputs["encoder_hidden_states"])
        return forward(**inputs)

    pipeline.transformer.forward = recording  # type: ignore[method-assign]
    with parallelize(pipeline, Scripted("FFHSFHFF")):
        assert (generate(pipeline) - stock).abs().max() < 0.2 * largest
    unconditional, conditional = prompts[0].chunk(2)
    noise = torch.Generator().manual_seed(1)
    assert torch.equal(conditional, torch.randn(2, 5, 16, generator=noise)), "the prompts come after the negative prompts"
    assert torch.equal(prompts[2], conditional) and not torch.equal(unconditional, conditional)
    with emulate(pipeline, Adaptive(tolerance=30.0, min_full_steps=3, max_half_steps=0), 2) as handle:
        assert (generate(pipeline) - stock).abs().max() < 0.2 * largest and "S" in handle.trace.compact()
