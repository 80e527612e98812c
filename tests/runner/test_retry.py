"""Failed rows that a pair regenerates: both ranks skip a shard that either finds damaged, and continue with the next."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist
from fsspec.implementations.local import LocalFileSystem

from hybridiff.config import DataConfig, SamplingConfig
from hybridiff.corpus import Corpus, Result, ShardWriter
from hybridiff.corpus.layout import metadata_name
from hybridiff.corpus.record import RunRecord
from hybridiff.parallel import Group
from hybridiff.prompts.plan import Plan, make_plan
from hybridiff.runner.data import ShardData
from tests.corpus.corpora import PNG, RUN_VALUES, result

ROWS, SHARD = 6, 2  # of which the first of each shard has failed
DAMAGED = metadata_name(0)


class Spoiling(LocalFileSystem):
    """A disk that gives other bytes of one file than there are."""

    cachable = False

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        return BytesIO(b"garbage" * 100) if path.endswith(DAMAGED) else super().open(path, mode, **options)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    (tmp_path / "prompts.txt").write_text("".join(f"prompt {row}\n" for row in range(ROWS)))
    return make_plan(DataConfig([str(tmp_path / "prompts.txt")]), SamplingConfig(), SHARD)


@pytest.fixture
def url(plan: Plan, tmp_path: Path) -> str:
    corpus = Corpus(str(tmp_path / "corpus"))
    corpus.start_run(RunRecord({}, {"rows": plan.rows, "shards": plan.shards, "content": plan.content}))
    for index in range(plan.shards):
        writer = ShardWriter(corpus, index, RUN_VALUES, plan.user_schema, PNG)
        bad, good = plan.shard(index).samples
        writer.write(Result(bad, None, "out of memory", False, 0, 0, 0, None, None, []))
        writer.write(replace(result(0), sample=good))
        writer.commit({})
    return corpus.url


@contextmanager
def pair() -> Iterator[list[Group]]:
    """Both ranks' views of a real group, of this process's threads."""
    store, limit = dist.HashStore(), timedelta(seconds=30)
    with ThreadPoolExecutor(2) as threads:
        made = threads.map(lambda rank: dist.ProcessGroupGloo(store, rank, 2, limit), range(2))
        yield [Group(2, rank, 0, 1, None, control, 30.0) for rank, control in enumerate(made)]


def regenerate(plan: Plan, corpus: Corpus, group: Group) -> tuple[list[tuple[int, list[str]]], dict[int, str]]:
    """Keys that a rank regenerates, by shard, and its reports on shards that it could not."""
    data = ShardData(plan, corpus, SHARD, retry_failed=True)
    strategy = SimpleNamespace(is_global_zero=True, group=group, broadcast=lambda pending: pending)
    data.trainer = SimpleNamespace(strategy=strategy)  # type: ignore[assignment]
    data.setup("predict")
    assert data.shards == [0]
    generated = [(batch.shard, [sample.key for sample in batch.samples]) for batch in data.predict_dataloader()]
    assert data.shards == [0, 1, 2]
    return generated, data.lost


@pytest.mark.timeout(60)
@pytest.mark.parametrize("unlucky", [0, 1])
def test_both_ranks_skip_a_shard_that_one_finds_damaged(plan: Plan, url: str, unlucky: int) -> None:
    corpora = [Corpus(url), Corpus(url)]
    corpora[unlucky].fs = Spoiling()
    with pair() as groups, ThreadPoolExecutor(2) as ranks:
        found = list(ranks.map(regenerate, [plan, plan], corpora, groups))
    for rank, (generated, lost) in enumerate(found):
        assert generated == [(index, [plan.shard(index).samples[0].key]) for index in (1, 2)], f"rank {rank}"
        assert list(lost) == [0]
        assert lost[0].startswith(f"ShardDamaged: {DAMAGED} in {url} is damaged (") == (rank == unlucky)
    assert found[1 - unlucky][1] == {0: "another rank of the group found it damaged"}
