"""A rank's memory is flat over a long run: plan, batches, background writing and commits, without a model."""

import gc
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hybridiff.config import DataConfig, SamplingConfig
from hybridiff.data.plan import make_plan
from hybridiff.lit.batches import ShardBatches
from hybridiff.sinks import Corpus, Result, ShardWriter
from hybridiff.sinks.background import BackgroundWriter
from tests.sinks.corpora import SETTINGS

BATCHES, WARM_UP = 2000, 500
BATCH, SHARD = 2, 100
GROWTH_MB = 16


def resident_mb() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_2000_batches_leave_memory_as_it_was(tmp_path: Path) -> None:
    rows = BATCHES * BATCH
    table = pa.table({"prompt": [f"prompt {row} " * 20 for row in range(rows)], "n": range(rows)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1000)
    plan = make_plan(DataConfig([str(tmp_path / "a.parquet")]), SamplingConfig(), SHARD, held_bytes=0)
    corpus = Corpus(str(tmp_path / "corpus"))
    writer = BackgroundWriter(lambda index: ShardWriter(corpus, index, SETTINGS, plan.user_schema, "png", 95), "png", 95)
    after = []
    for number, batch in enumerate(ShardBatches(plan, list(range(plan.shards)), BATCH)):
        image = np.full((64, 64, 3), number % 256, np.uint8)
        results = [Result(sample, image, None, False, 4, 0, 0, None, None, [0.5]) for sample in batch.samples]
        writer.put(batch.shard, results, batch.last, {})
        if number + 1 in (WARM_UP, BATCHES):
            after.append(resident_mb())
    writer.close()
    assert corpus.committed() == set(range(rows // SHARD))
    assert after[1] - after[0] < GROWTH_MB, f"{after[0]:.0f} MB after {WARM_UP} batches, {after[1]:.0f} MB after {BATCHES}"
