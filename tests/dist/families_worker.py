"""Run by torchrun: PixArt and Sana by the group and by the reference; writes what it saw. Argument: the directory to write to."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers import PixArtSigmaPipeline

from tests.dist.group_worker import SCHEDULES, compared, full_and_stock
from tests.dist.tiny import tiny_pixart, tiny_sana
from tests.parallel.scripted import Scripted

CASES = ("full", "script", "adaptive", "no guidance")
MAKERS = {"alpha": tiny_pixart, "sigma": lambda: tiny_pixart(PixArtSigmaPipeline), "sana": tiny_sana}


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    seen: dict[str, dict[str, Any]] = {}
    for kind, make in MAKERS.items():
        pipeline = make()
        seen[kind] = {
            "full": full_and_stock(pipeline, 3, 3),
            "script": compared(pipeline, Scripted("FFHHSFPPhF"), 1, 10),
            "adaptive": compared(pipeline, SCHEDULES["adaptive"], 2, 8),
            "no guidance": compared(pipeline, Scripted("FFH"), 2, 3, guidance_scale=1.0),
        }
    Path(sys.argv[1], f"{dist.get_rank()}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
