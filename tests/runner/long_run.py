"""A long run of the real job with images that no model generates; prints its memory and what it wrote.

Argument: the directory that all goes to.
"""

import gc
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lightning.pytorch import Callback, LightningModule, Trainer

from hybridiff.config import DataConfig, JobConfig, ModelConfig, OutputConfig, ParallelConfig, SamplingConfig, TrainerConfig
from hybridiff.corpus import Result
from hybridiff.prompts.plan import make_plan
from hybridiff.prompts.rows import Sample
from hybridiff.runner.job import prepare
from hybridiff.runner.module import CorpusModule
from hybridiff.runner.run import run

BATCHES, WARM_UP = 2000, 500
BATCH, SHARD = 2, 100


class Resident(Callback):
    """Megabytes of memory after the warm-up and at the end."""

    def __init__(self) -> None:
        self.after: list[float] = []

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Measures."""
        if batch_idx + 1 in (WARM_UP, BATCHES):
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.after.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)


def generate_grey(module: CorpusModule, samples: tuple[Sample, ...]) -> list[Result]:
    images = [np.full((64, 64, 3), 1 + sample.seed % 255, np.uint8) for sample in samples]
    return [Result(s, image, None, False, 4, 0, 0, None, None, [0.5]) for s, image in zip(samples, images, strict=True)]


def main() -> None:
    folder = Path(sys.argv[1])
    rows = BATCHES * BATCH
    table = pa.table({"prompt": [f"prompt {row} " * 20 for row in range(rows)], "n": range(rows)})
    pq.write_table(table, folder / "a.parquet", row_group_size=1000)
    config = JobConfig(
        ModelConfig("shapes-xl"),
        SamplingConfig(),
        ParallelConfig(),
        DataConfig(str(folder / "a.parquet"), batch_size=BATCH),
        OutputConfig(str(folder / "corpus"), shard_size=SHARD),
        trainer=TrainerConfig("cpu", logger=True, default_root_dir=str(folder / "logs")),
    )
    resident = Resident()
    job = prepare(config)
    job = replace(job, trainer_options=job.trainer_options | {"callbacks": [resident]})
    job = replace(job, plan=make_plan(config.data, config.sampling, SHARD, held_bytes=0))
    CorpusModule.generate = generate_grey  # type: ignore[method-assign]
    outcome = run(job)
    print(json.dumps({"megabytes": resident.after, "code": outcome.code, "generated": outcome.generated}))


if __name__ == "__main__":
    main()
