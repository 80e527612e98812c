"""Run by torchrun on two ranks: small pipelines whose networks are cut by plan, and one without a plan; writes what it saw.

Argument: the directory to write to.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers import (
    AuraFlowPipeline,
    AutoencoderKL,
    BriaPipeline,
    CogVideoXDDIMScheduler,
    CogView3PlusPipeline,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanDiTPipeline,
    LuminaPipeline,
    SD3Transformer2DModel,
)

from hybridiff.models.cuts import register_plan
from hybridiff.schedule import Adaptive
from tests.dist.group_worker import compared
from tests.dist.tiny import tiny_sd3
from tests.models.small_transformers import T5, TEXT, build
from tests.parallel.scripted import Scripted

PIXELS = 128
UP_BLOCK, DOWN_BLOCK = "UpDecoderBlock2D", "DownEncoderBlock2D"
MASKED = ("AuraFlow", "HunyuanDiT", "Lumina-Next")
PIPELINES: dict[str, tuple[Any, Any, tuple[str, ...]]] = {  # class, scheduler, and parts that it is made without
    "AuraFlow": (AuraFlowPipeline, FlowMatchEulerDiscreteScheduler, ()),
    "HunyuanDiT": (HunyuanDiTPipeline, DDPMScheduler, ("safety_checker", "feature_extractor", "text_encoder_2", "tokenizer_2")),
    "CogView3+": (CogView3PlusPipeline, CogVideoXDDIMScheduler, ()),
    "Lumina-Next": (LuminaPipeline, FlowMatchEulerDiscreteScheduler, ()),
    "Bria": (BriaPipeline, FlowMatchEulerDiscreteScheduler, ()),
}
CASES = {
    "script": (Scripted("FFHHSFPPhF"), 1, 10),
    "adaptive": (Adaptive(tolerance=30.0, min_full_steps=3, max_skip_steps=1), 2, 10),
}


class UncutTransformer(SD3Transformer2DModel):
    """A network that cannot be cut."""


register_plan(UncutTransformer, lambda _: None)


def make(name: str) -> Any:
    """A pipeline of a small random transformer, without the parts that make prompts and images."""
    kind, scheduler, absent = PIPELINES[name]
    torch.manual_seed(0)
    nothing = dict.fromkeys(("vae", "text_encoder", "tokenizer", *absent))
    options = {"HunyuanDiT": {"requires_safety_checker": False}, "Bria": {"vae": tiny_vae()}}.get(name, {})
    sampler = scheduler(clip_sample=False) if name == "HunyuanDiT" else scheduler()
    pipeline = kind(**nothing | options, transformer=build(name), scheduler=sampler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_vae() -> AutoencoderKL:
    """A decoder of scale 8, for a pipeline that reads its configuration."""
    up, down = (UP_BLOCK,) * 4, (DOWN_BLOCK,) * 4
    return AutoencoderKL(
        block_out_channels=(4,) * 4, up_block_types=up, down_block_types=down, norm_num_groups=2, shift_factor=0.0
    )


def make_uncut() -> Any:
    """SD3's pipeline with a network that has no plan."""
    pipeline = tiny_sd3()
    uncut = UncutTransformer.from_config(pipeline.transformer.config).eval()
    uncut.load_state_dict(pipeline.transformer.state_dict())
    pipeline.register_modules(transformer=uncut)
    return pipeline


def generate(name: str, pipeline: Any, images: int, steps: int) -> torch.Tensor:
    """Latents of as many different prompts and negative prompts."""
    noise = torch.Generator().manual_seed(1)
    second = {"_2": T5} if name == "HunyuanDiT" else {}
    given: dict[str, Any] = {}
    for suffix, width in {"": TEXT, **second}.items():
        for negative in ("", "negative_"):
            given[f"{negative}prompt_embeds{suffix}"] = torch.randn(images, TEXT, width, generator=noise)
            if name in MASKED:
                mask = torch.arange(TEXT) < torch.arange(images)[:, None] + 5
                given[f"{negative}prompt_attention_mask{suffix}"] = mask if name == "Lumina-Next" else mask.long()
    given |= {"use_resolution_binning": False} if name == "HunyuanDiT" else {}
    generators = [torch.Generator().manual_seed(i) for i in range(images)]
    size = {"height": PIXELS, "width": PIXELS, "output_type": "latent"}
    latents: torch.Tensor = pipeline(num_inference_steps=steps, guidance_scale=5.0, generator=generators, **size, **given).images
    return latents


class Warnings(logging.Handler):
    """Keeps the texts of warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def logged(pipeline: Any) -> dict[str, Any]:
    """The case of a network without a plan, and the warnings of it."""
    warnings = Warnings()
    logging.getLogger("hybridiff").addHandler(warnings)
    seen = compared(pipeline, Adaptive(tolerance=30.0, min_full_steps=3), 2, 8)
    return seen | {"warnings": warnings.texts}


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    seen: dict[str, dict[str, Any]] = {}
    for name in PIPELINES:
        pipeline = make(name)

        def generated(pipeline: Any, images: int, steps: int, name: str = name) -> torch.Tensor:
            return generate(name, pipeline, images, steps)

        seen[name] = {case: compared(pipeline, *given, generated) for case, given in CASES.items()}
    seen["without a plan"] = {"adaptive": logged(make_uncut())}
    Path(sys.argv[1], f"{dist.get_rank()}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
