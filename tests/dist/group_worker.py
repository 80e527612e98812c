"""Run by torchrun on two or four ranks: small random models by the group and by the reference; writes what it saw.

Arguments: the directory to write to, and the device.
"""

import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
)
from diffusers.hooks import HookRegistry
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from hybridiff.models.cuts import Cut, choose_cut
from hybridiff.models.guidance import reports_guidance
from hybridiff.parallel import parallelize
from hybridiff.parallel.reference import emulate
from hybridiff.schedule import Adaptive, Async, Paper, Refresh
from tests.dist.tiny import latents_of, tiny_sd3, tiny_xl
from tests.parallel.scripted import Scripted

SCRIPTS = ("FFFF", "FFHHSHFHhFF", "FFPPFPHPSPHpF", "FhHF")
SCHEDULES = {  # with some of every kind of step in ten steps
    "adaptive": Adaptive(tolerance=30.0, min_full_steps=3),
    "adaptive without skips": Adaptive(tolerance=30.0, min_full_steps=3, max_skip_steps=0),
    "paper": Paper(slope_window=2, tau_cap=4, k=3, guidance="extrapolate"),
    "refresh": Refresh(first=3, refresh_every=2),
    "async": Async(warm_up=3, stride=2),
    "async shifted": Async(warm_up=3, time_shift=True),
}
SAMPLERS: dict[str, dict[str, Any]] = {
    "xl": {
        "EulerDiscrete": EulerDiscreteScheduler,
        "EulerAncestralDiscrete": EulerAncestralDiscreteScheduler,
        "DPMSolverMultistep": DPMSolverMultistepScheduler,
        "HeunDiscrete": HeunDiscreteScheduler,
    },
    "sd3": {"FlowMatchHeunDiscrete": FlowMatchHeunDiscreteScheduler},
}
ATTENTION = {  # that of the CPU, which the counter does not know
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
}
MAKERS = {"xl": tiny_xl, "sd3": tiny_sd3}
WIDE = {"xl": tiny_xl, "sd3": lambda: tiny_sd3(layers=8, heads=16)}  # so that the embeddings, which every rank computes, are few


def case_names(ranks: int) -> list[tuple[str, str]]:
    """Section and name of each case that is compared with the reference on the CPU."""
    names = [("scripts", f"{kind} {script} {images}") for kind in MAKERS for script in SCRIPTS for images in (1, 3)]
    names += [("options", f"{kind} {option}") for kind in MAKERS for option in ("time shift", "no guidance")]
    names += [("stock", f"{kind} {images}") for kind in MAKERS for images in (1, 3)]
    if ranks == 2:
        names += [("schedules", f"{kind} {name}") for kind in MAKERS for name in SCHEDULES]
        names += [("samplers", f"{name} {how}") for kind in MAKERS for name in SAMPLERS[kind] for how in ("scripted", "adaptive")]
        names += [("options", name) for name in ("xl rescale", "xl channels_last", "xl bfloat16", "sd3 bfloat16")]
        names += [("adapters", kind) for kind in MAKERS]
    return names


def denoiser_of(pipeline: Any) -> Any:
    return pipeline.components.get("unet", pipeline.components.get("transformer"))


def compared(
    pipeline: Any, schedule: Any, images: int, steps: int, latents_of: Callable[..., torch.Tensor] = latents_of, **options: Any
) -> dict[str, Any]:
    """One case by the reference, and twice in a row by the group."""
    size = dist.get_world_size() if dist.is_initialized() else 1
    scale = None if reports_guidance(type(pipeline)) else options.get("guidance_scale", 5.0)
    handle = emulate(pipeline, schedule, size, scale)
    expected = latents_of(pipeline, images, steps, **options)
    curves = handle.trace.curves()
    handle.remove()
    handle = parallelize(pipeline, schedule, size, guidance_scale=scale)
    first = latents_of(pipeline, images, steps, **options)
    seen = {
        "collectives": handle.exchange.collectives,
        "bytes": handle.exchange.bytes_sent,
        "kinds": "".join(kind.value[0] for kind in handle.trace.kinds),
        "curves_equal": curves == handle.trace.curves(),
        "equal": torch.equal(first, expected) and bool(first.isfinite().all()),
        "again": torch.equal(latents_of(pipeline, images, steps, **options), expected),
        "checksum": checksum(first),
    }
    handle.remove()
    return seen


def checksum(latents: torch.Tensor) -> str:
    """SHA-256 of their bits."""
    return hashlib.sha256(latents.contiguous().view(torch.uint8).cpu().numpy().tobytes()).hexdigest()


def full_and_stock(pipeline: Any, images: int, steps: int) -> dict[str, Any]:
    """Full steps by reference and group, and how far the stock pipeline's latents are from theirs, by the largest of them."""
    stock = latents_of(pipeline, images, steps)
    seen = compared(pipeline, "full", images, steps)
    scale = None if reports_guidance(type(pipeline)) else 5.0
    handle = parallelize(pipeline, "full", dist.get_world_size(), guidance_scale=scale)
    difference = latents_of(pipeline, images, steps).float() - stock.float()
    handle.remove()
    return seen | {"distance_to_stock": (difference.abs().max() / stock.abs().max()).item()}


def cut_of(pipeline: Any, images: int, segments: int) -> Cut:
    """The cut for what the pipeline passes to its denoiser."""
    seen: list[Any] = []
    denoiser = denoiser_of(pipeline)
    watch = denoiser.register_forward_pre_hook(lambda module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    latents_of(pipeline, images, 1)
    watch.remove()
    return choose_cut(denoiser, *seen[0], segments)


def described(cut: Cut) -> dict[str, Any]:
    elements = dict(zip((block.path for block in cut.blocks), cut.elements, strict=True))
    crossing = [(cut.owner(path), reader, elements[path]) for path, reader in cut.crossing]
    return {"crossing": crossing, "prediction": cut.prediction}


def half_step_flops(pipeline: Any, images: int) -> float:
    """FLOPs of one half step on this rank, by those of the largest segment."""
    size = dist.get_world_size()
    spent = []
    for script in ("FFF", "FFH"):
        handle = parallelize(pipeline, Scripted(script), size)
        latents_of(pipeline, images, 3)  # chooses the cut, which counts on the meta device
        with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
            latents_of(pipeline, images, 3)
        handle.remove()
        spent.append(counter.get_total_flops())
    steps_full = spent[0] / 3
    lanes = 2 if size == 4 and images > 1 else 1
    cut = cut_of(pipeline, images, size // lanes)
    return (spent[1] - 2 * steps_full) / max(cut.flops) / -(-images // lanes)


def graphs_by_step(pipeline: Any, script: str) -> list[int]:
    """Graphs compiled so far, after each step."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    denoiser = denoiser_of(pipeline)
    for block in getattr(denoiser, "transformer_blocks", ()):  # of the SD3 transformer, which does not say what repeats
        block.compile(backend="eager")
    if hasattr(pipeline, "unet"):
        denoiser.compile_repeated_blocks(backend="eager")
    handle = parallelize(pipeline, Scripted(script), dist.get_world_size())
    graphs: list[int] = []

    def count(*_: Any) -> dict[str, Any]:
        graphs.append(counters["stats"]["unique_graphs"])
        return {}

    latents_of(pipeline, 2, len(script), callback_on_step_end=count)
    handle.remove()
    return graphs


def adapted(pipeline: Any) -> Any:
    """A pipeline with a LoRA adapter of random weights on its attention."""
    from peft import LoraConfig

    torch.manual_seed(1)
    denoiser_of(pipeline).add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
    return pipeline


def hooks_of(pipeline: Any) -> list[str]:
    """Names of all hooks on the denoiser and in it."""
    found = (m._diffusers_hook for m in denoiser_of(pipeline).modules() if hasattr(m, "_diffusers_hook"))
    return sorted(name for registry in found if isinstance(registry, HookRegistry) for name in registry.hooks)


def main() -> None:
    torch.set_num_threads(1)
    directory, device = Path(sys.argv[1]), torch.device(sys.argv[2])
    dist.init_process_group("gloo")
    sections = ("scripts", "stock", "samplers", "options", "flops", "graphs", "hooks", "cuts", "adapters", "schedules")
    seen: dict[str, Any] = {section: {} for section in sections}
    for kind, make in MAKERS.items():
        pipeline = make().to(device)
        for script in SCRIPTS:
            for images in (1, 3):
                seen["scripts"][f"{kind} {script} {images}"] = compared(pipeline, Scripted(script), images, len(script))
        for images in (1, 3):
            seen["stock"][f"{kind} {images}"] = full_and_stock(pipeline, images, 4)
        seen["options"][f"{kind} time shift"] = compared(pipeline, Scripted("FFPPPPF", shift_time=True), 2, 7)
        seen["options"][f"{kind} no guidance"] = compared(pipeline, Scripted("FFHH"), 3, 4, guidance_scale=1.0)
        handle = parallelize(pipeline, Scripted("FHF"), dist.get_world_size())
        before = hooks_of(pipeline)
        latents_of(pipeline, 1, 3)
        during = hooks_of(pipeline)
        handle.remove()
        seen["hooks"][kind] = [before, during, hooks_of(pipeline)]
        if device.type == "cpu":
            wide = WIDE[kind]()
            seen["flops"][kind] = [half_step_flops(wide, images) for images in (1, 2)]
            seen["cuts"][kind] = described(cut_of(pipeline, 1, 2))
        if device.type == "cpu" and dist.get_world_size() == 2:
            more(seen, kind, pipeline)
    (directory / f"{dist.get_rank()}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


def more(seen: dict[str, Any], kind: str, pipeline: Any) -> None:
    """Samplers, dtypes, layouts and compilation, where two ranks are enough."""
    for name, real in SCHEDULES.items():
        seen["schedules"][f"{kind} {name}"] = compared(pipeline, real, 2, 10)
    schedule = Scripted("FFHHSHFHHF")
    own = pipeline.scheduler
    for name, sampler in SAMPLERS[kind].items():
        pipeline.scheduler = sampler.from_config(own.config)
        seen["samplers"][f"{name} scripted"] = compared(pipeline, schedule, 2, 8)
        seen["samplers"][f"{name} adaptive"] = compared(pipeline, SCHEDULES["adaptive"], 2, 10)
    pipeline.scheduler = own
    if kind == "xl":
        seen["options"]["xl rescale"] = compared(pipeline, schedule, 2, 10, guidance_rescale=0.7)
        denoiser_of(pipeline).to(memory_format=torch.channels_last)
        seen["options"]["xl channels_last"] = compared(pipeline, schedule, 2, 10)
    if importlib.util.find_spec("peft") is not None:
        seen["adapters"][kind] = compared(adapted(MAKERS[kind]()), schedule, 2, 10)
    seen["graphs"][kind] = graphs_by_step(MAKERS[kind](), "FFHHSHFHFPPFPHF")
    seen["options"][f"{kind} bfloat16"] = compared(pipeline.to(torch.bfloat16), schedule, 3, 10)


if __name__ == "__main__":
    main()
