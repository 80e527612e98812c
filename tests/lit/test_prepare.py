"""Preparing a job: who makes large prompt tables ready, and where."""

from functools import partial
from pathlib import Path

import pytest

from hybridiff.config import DataConfig, JobConfig, ModelConfig, OutputConfig, ParallelConfig, SamplingConfig
from hybridiff.lit import prepare


@pytest.mark.parametrize("writes", [True, False])
def test_rank_0_copies_large_tables_into_the_corpus_unless_nothing_is_to_be_written(
    writes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    monkeypatch.setattr(prepare, "make_plan", partial(prepare.make_plan, held_bytes=0))
    model = ModelConfig("shapes-xl")
    data, output = DataConfig(str(tmp_path / "a.txt")), OutputConfig(str(tmp_path / "corpus"))
    config = JobConfig(model, SamplingConfig(), ParallelConfig(), data, output)
    job = prepare.prepare(config, {}, {}, writes=writes)
    assert [sample.prompt for sample in job.plan.shard(0).samples] == ["one", "two"]
    there = sorted(path.suffix for path in (tmp_path / "corpus").rglob("*.*"))
    assert there == ([".json", ".parquet"] if writes else [])
