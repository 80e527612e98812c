"""Pipelines that work as a library only, as the job gives them no image or makes no video: as the stock pipeline, or refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    ControlNetModel,
    FlowMatchEulerDiscreteScheduler,
    KolorsPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    StableDiffusionXLAutoBlocks,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from torch import Tensor

from hybridiff.errors import UsageError
from hybridiff.models.facts import check_pipeline
from hybridiff.parallel import parallelize
from hybridiff.parallel.reference import emulate
from hybridiff.schedule import Adaptive
from tests.dist.tiny import tiny_xl
from tests.dist.tiny_families import autoencoder, noise, pair, pooled

ADAPTIVE = Adaptive(tolerance=3.0, min_full_steps=3)
STEPS = 10
Generate = Callable[..., Tensor]
NOTHING = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))


def prompts(rows: int = 2) -> dict[str, Tensor]:
    return pair(rows, tokens=(5, 5)) | pooled(rows)


def generators(rows: int = 2) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(row) for row in range(rows)]


def calling(pipeline: Any, **given: Any) -> tuple[Any, Generate]:
    pipeline.set_progress_bar_config(disable=True)

    def generate(one: Any) -> Tensor:
        output = one(**{"num_inference_steps": STEPS, "generator": generators(), "output_type": "latent"} | given)
        latents: Tensor = output[0]
        return latents

    return pipeline, generate


def of_xl(kind: Any, pixels: int = 64, **given: Any) -> tuple[Any, Generate]:
    """A pipeline of SDXL's parts."""
    parts = tiny_xl()
    more = given.pop("parts", {})
    made = kind(**NOTHING, vae=autoencoder(), unet=parts.unet, scheduler=parts.scheduler, add_watermarker=False, **more)
    return calling(made, height=pixels, width=pixels, guidance_scale=5.0, **prompts(), **given)


def image() -> Tensor:
    return noise(5, 2, 3, 64, 64).sigmoid()


def refiner() -> tuple[Any, Generate]:
    """Its time embeddings are those of sizes and an aesthetic score, and it goes on from latents."""
    parts = tiny_xl()
    config = dict(parts.unet.config) | {"projection_class_embeddings_input_dim": 16 + 5 * 8}
    torch.manual_seed(0)
    unet = type(parts.unet).from_config(config).eval()
    made = StableDiffusionXLImg2ImgPipeline(
        **NOTHING, vae=autoencoder(), unet=unet, scheduler=parts.scheduler, requires_aesthetics_score=True, add_watermarker=False
    )
    return calling(made, image=noise(5, 2, 4, 16, 16), strength=0.99, guidance_scale=5.0, denoising_start=0.2, **prompts())


def controlled() -> tuple[Any, Generate]:
    net = ControlNetModel.from_unet(tiny_xl().unet, conditioning_channels=3, conditioning_embedding_out_channels=(8, 8, 8))
    for parameter in net.parameters():
        parameter.data += 0.02 * noise(7, *parameter.shape)
    return of_xl(
        StableDiffusionXLControlNetPipeline, pixels=32, image=noise(5, 2, 3, 32, 32).sigmoid(), parts={"controlnet": net.eval()}
    )


def adapted() -> tuple[Any, Generate]:
    """With weights of an IP-adapter, random, for embeddings of images."""
    pipeline, generate = of_xl(StableDiffusionXLPipeline, ip_adapter_image_embeds=[noise(6, 2, 1, 16)])
    unet, keys = pipeline.unet, {}
    number = 1
    for name, processor in unet.attn_processors.items():
        if name.endswith("attn2.processor") and processor is not None:
            channels = unet.get_submodule(name.removesuffix(".processor")).inner_dim
            keys |= {f"{number}.to_{letter}_ip.weight": noise(number, channels, 16) for letter in "kv"}
        number += 2 if name.endswith("attn2.processor") else 0
    projection = {"proj.weight": noise(8, 4 * 16, 16), "proj.bias": noise(9, 4 * 16)}
    projection |= {"norm.weight": torch.ones(16), "norm.bias": torch.zeros(16)}
    unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": keys}])
    pipeline.set_ip_adapter_scale(0.8)
    return pipeline, generate


def kolors() -> tuple[Any, Generate]:
    parts = tiny_xl()
    made = KolorsPipeline(vae=autoencoder(), text_encoder=None, tokenizer=None, unet=parts.unet, scheduler=parts.scheduler)
    return calling(made, height=64, width=64, guidance_scale=5.0, **prompts())


def wan() -> tuple[Any, Generate]:
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )
    made = WanPipeline(None, None, None, FlowMatchEulerDiscreteScheduler(), transformer=transformer.eval())
    return calling(made, height=32, width=32, num_frames=5, guidance_scale=5.0, **pair(2, tokens=(5, 5)))


def ltx() -> tuple[Any, Generate]:
    torch.manual_seed(0)
    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=2,
        caption_channels=16,
    )
    made = LTXPipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, transformer.eval())
    masks = {f"{name}prompt_attention_mask": torch.ones(2, 5, dtype=torch.bool) for name in ("", "negative_")}
    return calling(made, height=64, width=64, num_frames=9, guidance_scale=3.0, **pair(2, tokens=(5, 5)), **masks)


def modular() -> tuple[Any, Generate]:
    """The denoising block of SDXL's modular pipeline, whose guider makes one call per branch."""
    blocks: Any = StableDiffusionXLAutoBlocks()
    for name in ("text_encoder", "ip_adapter", "vae_encoder", "decode"):
        blocks.sub_blocks.pop(name)
    pipeline = blocks.init_pipeline()
    parts = tiny_xl()
    pipeline.update_components(unet=parts.unet, scheduler=parts.scheduler, vae=autoencoder())
    pipeline.set_progress_bar_config(disable=True)

    def generate(one: Any) -> Tensor:
        size = {"num_inference_steps": STEPS, "height": 64, "width": 64}
        latents: Tensor = one(**size, generator=generators(), **prompts(), output="latents")
        return latents

    return pipeline, generate


CASES: dict[str, Callable[[], tuple[Any, Generate]]] = {
    "inpaint": lambda: of_xl(StableDiffusionXLInpaintPipeline, image=image(), mask_image=image()[:, :1].round(), strength=0.99),
    "refiner": refiner,
    "controlnet": controlled,
    "ip-adapter": adapted,
    "kolors": kolors,
    "wan": wan,
    "ltx": ltx,
    "modular": modular,
}


@pytest.mark.parametrize("name", CASES)
def test_full_steps_are_the_stock_pipelines_and_adaptive_skips_as_the_reference(name: str) -> None:
    pipeline, generate = CASES[name]()
    stock = generate(pipeline)
    assert stock.isfinite().all()
    with parallelize(pipeline, "full", 1):
        assert torch.equal(generate(pipeline), stock)
    with emulate(pipeline, "full", 2):
        torch.testing.assert_close(generate(pipeline), stock, atol=1e-4, rtol=1e-4)
    with parallelize(pipeline, ADAPTIVE, 1) as handle:
        latents = generate(pipeline)
        assert "S" in handle.trace.compact() and not torch.equal(latents, stock)
    with emulate(pipeline, ADAPTIVE, 1):
        assert torch.equal(generate(pipeline), latents)
    assert torch.equal(generate(pipeline), stock)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (StableDiffusionXLInpaintPipeline, "takes an image"),
        (StableDiffusionXLImg2ImgPipeline, "takes an image"),
        (StableDiffusionXLControlNetPipeline, "takes an image"),
        (WanPipeline, "generates video"),
        (LTXPipeline, "generates video"),
    ],
)
def test_the_job_refuses_what_it_cannot_generate(kind: Any, why: str) -> None:
    with pytest.raises(UsageError, match=f"a {kind.__name__}, which {why}; allowed: pipelines that generate images from prompts"):
        check_pipeline("tiny", kind)
