"""Run by torchrun on two ranks: one bundled model, by the pair and by a reference on each rank alone; writes what it saw."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook

from hybridiff import parallelize
from hybridiff.config import ModelConfig
from hybridiff.models.facts import read_facts
from hybridiff.models.load import load_pipeline

PROMPTS = ["a small red circle on a blue background at the left", "a large ring", "a green square on a white background"]
STEPS = 4


class OneBranchAfterTheOther(ModelHook):
    """The reference: the two halves of a doubled batch, by one call each; without guidance, the halves that a pair computes."""

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        rows = (args[0] if args else kwargs["hidden_states"]).shape[0]
        each = -(-rows // 2)
        parts = []
        for rank in range(2):
            which = torch.arange(rank * each, (rank + 1) * each).clamp(max=rows - 1)

            def take(value: Any, which: torch.Tensor = which) -> Any:
                if isinstance(value, dict):
                    return {k: take(v) for k, v in value.items()}
                return value[which] if isinstance(value, torch.Tensor) and value.ndim and len(value) == rows else value

            parts.append(self.fn_ref.original_forward(*(take(a) for a in args), **{k: take(v) for k, v in kwargs.items()})[0])
        return (torch.cat(parts)[:rows],)


def main() -> None:
    torch.set_num_threads(1)
    kind, directory = sys.argv[1], Path(sys.argv[2])
    model = ModelConfig(path=f"shapes-{kind}")
    pipeline = load_pipeline(model, read_facts(model))
    denoiser = pipeline.unet if kind == "xl" else pipeline.transformer
    options: dict[str, Any] = {"max_sequence_length": 4} if kind == "sd3" else {}

    def generate(batch: int, guidance: float, rescale: float) -> torch.Tensor:
        return pipeline(
            PROMPTS[:batch],
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(i) for i in range(batch)],
            output_type="latent",
            **options,
            **({"guidance_rescale": rescale} if rescale else {}),
        ).images

    registry = HookRegistry.check_if_exists_or_initialize(denoiser)
    cases = [(b, g, r) for b in (1, 3) for g, r in ((1.0, 0.0), (5.0, 0.0), (5.0, 0.7)) if not r or kind == "xl"]
    stock = [generate(*case) for case in cases]
    registry.register_hook(OneBranchAfterTheOther(), "reference")
    reference = [generate(*case) for case in cases]
    registry.remove_hook("reference")

    hooks_before = list(registry.hooks)
    torch.manual_seed(int(os.environ["RANK"]))  # ranks that would sample different noise
    handle = parallelize(pipeline)
    hooks = list(registry.hooks)
    seen: dict[str, Any] = {"rank": handle.group.rank, "hooks_before": hooks_before, "hooks": hooks, "cases": []}
    for case, alone, halves in zip(cases, stock, reference, strict=True):
        before = handle.exchange.collectives
        first, second = generate(*case), generate(*case)
        seen["cases"].append(
            {
                "case": case,
                "collectives": handle.exchange.collectives - before,
                "equal_to_reference": torch.equal(first, halves),
                "second_call_equal": torch.equal(first, second),
                "distance_to_stock": (first - alone).abs().max().item(),
                "curves": handle.trace.curves(),
                "checksum": first.double().sum().item(),
            }
        )
    generated = pipeline(PROMPTS[0], num_inference_steps=2, output_type="latent", **options).images
    seen["without_generator"] = generated.double().sum().item()
    try:
        pipeline(PROMPTS[0], num_inference_steps=2, generator=torch.Generator().manual_seed(handle.group.rank), **options)
    except ValueError as error:
        seen["different_seeds"] = str(error)
    handle.remove()
    seen["hooks_after"] = list(registry.hooks)
    seen["forward_is_own"] = "forward" not in vars(denoiser) or denoiser.forward.__func__ is type(denoiser).forward
    seen["stock_again"] = torch.equal(generate(*cases[-1]), stock[-1])
    handle = parallelize(pipeline)
    seen["parallel_again"] = torch.equal(generate(*cases[-1]), reference[-1])
    handle.remove()
    (directory / f"{handle.group.rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
