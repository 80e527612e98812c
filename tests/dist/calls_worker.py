"""Run by torchrun: pipelines of all families on the group and by the reference; writes what it saw.

Arguments: the directory, and the names of the pipelines, all by default.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hybridiff.models.cuts import plan_of
from hybridiff.models.inputs import find_denoiser
from hybridiff.parallel import parallelize
from hybridiff.parallel.reference import emulate
from hybridiff.schedule import Adaptive, Schedule
from tests.dist.tiny_families import CASES, SINGLE, Case
from tests.parallel.scripted import Scripted

ADAPTIVE = Adaptive(tolerance=3.0, min_full_steps=3, max_half_steps=0)


def compared(case: Case, pipeline: Any, schedule: str | Schedule, images: int, steps: int) -> dict[str, Any]:
    """Latents of the group against those of the reference and of the stock pipeline, and collectives of one run."""
    size = dist.get_world_size()
    stock = case.generate(pipeline, images, steps)
    with emulate(pipeline, schedule, size):
        expected = case.generate(pipeline, images, steps)
    with parallelize(pipeline, schedule, size) as handle:
        latents = case.generate(pipeline, images, steps)
        collectives = handle.exchange.collectives
        again = case.generate(pipeline, images, steps)
        kinds = handle.trace.compact()
    return {
        "equal": torch.equal(latents, expected) and torch.equal(again, latents),
        "distance": ((latents - stock).abs().max() / stock.abs().max()).item(),
        "collectives": collectives,
        "kinds": kinds,
        "checksum": latents.double().sum().item(),
    }


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    seen: dict[str, dict[str, Any]] = {}
    for name in sys.argv[2:] or CASES:
        case = CASES[name]
        pipeline, images = case.make(), min(3, case.most)
        seen[name] = {
            "full": compared(case, pipeline, "full", images, 4),
            "one image": compared(case, pipeline, "full", 1, 4),
            "adaptive": compared(case, pipeline, ADAPTIVE, images, 8),
        }
        if plan_of(find_denoiser(pipeline)) is not None:
            few = 1 if name in SINGLE else images  # without guidance, the ranks share the network for one image only
            seen[name]["half"] = compared(case, pipeline, Scripted("FFHHSFHF"), few, 8)
    Path(sys.argv[1], f"{dist.get_rank()}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
