"""A rank's memory is flat over a long run: loop, loggers, writer and all, without a model."""

import json
from pathlib import Path

import pytest

from hybridiff.corpus import Corpus
from tests.dist.processes import run
from tests.runner.long_run import BATCH, BATCHES, SHARD, WARM_UP

GROWTH_MB = 16


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_2000_batches_leave_memory_as_it_was(tmp_path: Path) -> None:
    finished = run(1, "tests/runner/long_run.py", str(tmp_path)).succeeded()
    report = json.loads(finished.output.splitlines()[-1])
    assert report["code"] == 0 and report["generated"] == BATCHES * BATCH
    assert Corpus(str(tmp_path / "corpus")).committed() == set(range(BATCHES * BATCH // SHARD))
    assert list((tmp_path / "logs").rglob("metrics.csv")), "the loggers took part"
    before, after = report["megabytes"]
    assert after - before < GROWTH_MB, f"{before:.0f} MB after {WARM_UP} batches, {after:.0f} MB after {BATCHES}"
