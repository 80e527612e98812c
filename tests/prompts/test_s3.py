"""Prompt tables on a real S3 server that is away for a while, or answers wrongly: they are waited for."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybridiff.config import DataConfig, SamplingConfig
from hybridiff.corpus import Corpus
from hybridiff.errors import StorageError, UsageError
from hybridiff.prompts.normalise import Request
from hybridiff.prompts.plan import Plan, make_plan
from hybridiff.prompts.shared import identity
from hybridiff.prompts.sources import find_sources
from hybridiff.storage.publish import Publication
from tests.optional import needs
from tests.services.proxy import FaultyProxy
from tests.services.swift import CREDENTIALS, Swift
from tests.storage.test_s3 import uploads

needs("s3fs", "s3")
DOWN_S = 20.0
BUCKET = "tables"
PROMPTS = [f"prompt {row}" for row in range(1000)]


@pytest.fixture
def proxy(swift: Swift, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FaultyProxy]:
    """In front of a bucket that holds the prompts as Parquet and as text."""
    from hybridiff.storage.s3 import RetryingS3

    pq.write_table(pa.table({"prompt": PROMPTS}), tmp_path / "a.parquet", row_group_size=100)
    (tmp_path / "b.txt").write_text("\n".join(PROMPTS))
    with FaultyProxy(swift.url) as proxy:
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": proxy.url, "AWS_MAX_ATTEMPTS": "1"}.items():
            monkeypatch.setenv(name, value)
        RetryingS3.clear_instance_cache()
        fs = RetryingS3()
        fs.mkdirs(BUCKET, exist_ok=True)
        for name in ("a.parquet", "b.txt"):
            fs.put_file(tmp_path / name, f"{BUCKET}/{name}")
        RetryingS3.clear_instance_cache()
        proxy.method = "GET"
        yield proxy
        RetryingS3.clear_instance_cache()


def plan_of(name: str, held_bytes: int) -> Plan:
    return make_plan(DataConfig([f"s3://{BUCKET}/{name}"]), SamplingConfig(), 100, held_bytes=held_bytes)


def prompts_of(plan: Plan, *shards: int) -> list[str]:
    return [sample.prompt for index in shards for sample in plan.shard(index).samples]


def while_down(swift: Swift, work: Callable[[], None]) -> None:
    """Does it while the server is away, which comes back by itself."""
    swift.kill()
    back = threading.Timer(DOWN_S, swift.start)
    back.start()
    try:
        work()
    finally:
        back.join()


@pytest.mark.timeout(200)
def test_a_large_table_on_a_server_that_is_away_is_read_once_it_is_back(swift: Swift, proxy: FaultyProxy) -> None:
    data, corpus = DataConfig(f"s3://{BUCKET}/a.parquet"), Corpus(f"s3://{BUCKET}/away")
    plan = make_plan(data, SamplingConfig(), 100, corpus, "lead", held_bytes=-1)
    assert prompts_of(plan, 0) == PROMPTS[:100]

    def work() -> None:
        assert prompts_of(plan, 7) == PROMPTS[700:800]

    while_down(swift, work)
    assert prompts_of(plan, 8) == PROMPTS[800:900]


MIXED: list[int | str] = [503, "cut", "torn", 500, "torn", "cut"]


@pytest.mark.parametrize("held_bytes", [-1, 1 << 30])
@pytest.mark.parametrize("name", ["a.parquet", "b.txt"])
def test_transient_failures_are_retried(proxy: FaultyProxy, name: str, held_bytes: int) -> None:
    proxy.text, proxy.faults = name, list(MIXED)
    plan = plan_of(name, held_bytes)
    assert prompts_of(plan, *range(10)) == PROMPTS
    assert proxy.faults == [], "all were met"


def test_a_wrong_address_is_reported_soon(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"^s3://tables/a\.parquet: cannot be read: "):
        plan_of("a.parquet", 1 << 30)


def test_what_is_not_there_is_not_waited_for(proxy: FaultyProxy) -> None:
    with pytest.raises(UsageError, match=r"^s3://tables/c\.txt: no such file$"):
        plan_of("c.txt", 1 << 30)
    with pytest.raises(UsageError, match=r"matches no file$"):
        find_sources([f"s3://{BUCKET}/*.csv"])


@pytest.mark.timeout(120)
def test_jobs_that_start_together_do_not_abort_each_others_uploads(proxy: FaultyProxy, tmp_path: Path) -> None:
    table = tmp_path / "a.jsonl"
    table.write_text(
        "".join(f'{{"prompt": "{os.urandom(400).hex()}"}}\n' for _ in range(32_000))
    )  # more than a part of an upload
    request = Request(find_sources([str(table)]), DataConfig([str(table)]), 1)
    corpus = Corpus(f"s3://{BUCKET}/together")
    others = Publication(corpus.fs, corpus.path(f"tables/{identity(request, 100)}.parquet"), sweep=False)
    others.write(os.urandom(20 << 20))
    jobs, found = 3, []
    together = threading.Barrier(jobs)

    def work() -> None:
        corpus = Corpus(f"s3://{BUCKET}/together")
        together.wait()
        plan = make_plan(DataConfig([str(table)]), SamplingConfig(), 100, corpus, "lead", held_bytes=-1)
        found.append((plan.content, prompts_of(plan, 159)))

    threads = [threading.Thread(target=work) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == jobs and found[0] == found[1] == found[2]
    assert uploads(corpus) == [f"together/tables/{identity(request, 100)}.parquet"], "somebody's, who may be at work"
    others.discard()
    names = corpus.names("tables")
    assert sorted(name.rpartition(".")[2] for name in names) == ["parquet"]
