"""A corpus on a real S3 server that fails in every way: what is visible is whole, and what is left over is cleared up."""

import asyncio
import errno
import hashlib
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from hybridiff.corpus import Corpus, Result, ShardWriter, verify
from hybridiff.corpus.background import BackgroundWriter
from hybridiff.corpus.writable import check_writable
from hybridiff.errors import StorageError
from hybridiff.prompts.rows import Sample
from hybridiff.storage.publish import PART_BYTES, publish_bytes, publishing
from tests.corpus.corpora import PNG, RUN_VALUES, files, make_corpus, record
from tests.optional import needs
from tests.services.proxy import FaultyProxy
from tests.services.swift import Swift

needs("s3fs", "s3")
DOWN_S = 20.0


def big(number: int) -> Result:
    """About 4.3 MB as a PNG: two fill a part of an upload."""
    image = np.random.default_rng(number).integers(0, 256, (1200, 1200, 3), dtype=np.uint8)
    return Result(Sample(f"big{number}", "noise", None, number, {}), image, None, False, 1, 0, 0, None, None, [])


def uploads(corpus: Corpus) -> list[str]:
    fs: Any = corpus.fs
    return sorted(upload["Key"] for upload in fs.list_multipart_uploads(corpus.root.partition("/")[0]))


def shard(corpus: Corpus, index: int) -> ShardWriter:
    return ShardWriter(corpus, index, RUN_VALUES, pa.schema([]), PNG)


MIXED = [500, None, 503, None, "cut", "cut", None, None, "slow", None, 503, 500, None, "cut"]


def make_large(url: str) -> Corpus:
    """Four shards whose tars are uploads in parts."""
    corpus = Corpus(url)
    corpus.start_run(record(plan={"rows": 8, "shards": 4, "content": "0"}))
    for index in range(4):
        writer = shard(corpus, index)
        for number in range(2):
            writer.write(big(2 * index + number))
        writer.commit({})
    return corpus


@pytest.mark.parametrize(("method", "make"), [("PUT", make_corpus), ("PUT", make_large), ("POST", make_large)])
def test_transient_failures_are_retried(
    proxy: FaultyProxy, corpus: Corpus, tmp_path: Path, method: str, make: Callable[[str], Corpus]
) -> None:
    proxy.method, proxy.faults = method, list(MIXED)  # PUT: parts and small objects; POST: beginning and completing uploads
    made = make(corpus.url)
    assert proxy.faults == [], "all occurred"
    assert verify(made).whole and uploads(made) == []
    there, here = files(made), files(make(str(tmp_path / "corpus")))
    assert {n: d for n, d in there.items() if not n.startswith("stats/")} == {
        n: d for n, d in here.items() if not n.startswith("stats/")
    }


def test_what_the_server_means_is_not_asked_again(proxy: FaultyProxy, corpus: Corpus) -> None:
    publish_bytes(corpus.fs, corpus.path("run.json"), b"first", exclusive=True)
    with pytest.raises(FileExistsError):
        publish_bytes(corpus.fs, corpus.path("run.json"), b"second", exclusive=True)
    assert corpus.read("run.json") == b"first"
    with pytest.raises(FileNotFoundError):
        corpus.read("nothing")


@pytest.mark.timeout(200)
def test_a_server_killed_in_mid_upload_and_down_for_a_while_is_waited_for(swift: Swift, corpus: Corpus) -> None:
    corpus.start_run(record(plan={"rows": 4, "shards": 1, "content": "0"}))
    writer = shard(corpus, 0)
    for number in range(2):
        writer.write(big(number))
    assert uploads(corpus) == ["corpus/images/00000.tar"]
    swift.kill()
    back = threading.Timer(DOWN_S, swift.start)
    back.start()
    try:
        for number in range(2, 4):
            writer.write(big(number))
        marker = writer.commit({})
    finally:
        back.join()
    assert marker["rows"] == 4 and verify(corpus).whole and uploads(corpus) == []


@pytest.mark.timeout(200)
def test_a_shard_that_storage_does_not_take_fails_alone_and_leaves_nothing_of_its_own(swift: Swift, corpus: Corpus) -> None:
    fs: Any = corpus.fs
    bucket = corpus.root.partition("/")[0]
    fs.call_s3("create_multipart_upload", Bucket=bucket, Key="corpus/images/00000.tar.other")
    fs.call_s3("create_multipart_upload", Bucket=bucket, Key="somebody/elses")
    others = ["corpus/images/00000.tar.other", "somebody/elses"]
    fs.retry_budget_s = 2.0
    closed: list[int] = []
    writer = BackgroundWriter(lambda index: shard(corpus, index), PNG, closed=closed.append, is_transient=corpus.is_transient)
    writer.put(0, [big(0), big(1)], False, {})
    while uploads(corpus) == others:
        pass
    swift.kill()
    writer.put(0, [big(2), big(3)], True, {})
    while not closed:
        pass
    swift.start()
    writer.put(1, [big(4), big(5)], True, {})
    writer.close()
    assert list(writer.lost) == [0] and "onnect" in writer.lost[0]
    assert corpus.committed() == {1} and corpus.names("images") == ["00001.tar"]
    assert uploads(corpus) == ["corpus/images/00000.tar", *others], "what could not be aborted while the server was down"
    again = shard(corpus, 0)
    assert [key for key in uploads(corpus) if key != "corpus/images/00000.tar"] == others
    again.write(big(0))
    again.commit({})
    assert corpus.committed() == {0, 1} and uploads(corpus) == others


def test_a_wrong_address_is_reported_soon(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    from hybridiff.errors import StorageError
    from hybridiff.storage.s3 import RetryingS3

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    RetryingS3.clear_instance_cache()
    with pytest.raises(StorageError, match="it is not writable"):
        check_writable(Corpus("s3://bucket/corpus"))


@pytest.mark.timeout(200)
def test_verify_and_its_processes_wait_for_a_server_that_is_down_for_a_while(swift: Swift, corpus: Corpus) -> None:
    from hybridiff.corpus.verify import _check, _Planned
    from hybridiff.storage.s3 import RetryingS3

    make_corpus(corpus.url)
    for there in (True, False):  # in the process that has listed the shards, and in one that it starts
        RetryingS3.clear_instance_cache()
        checked = Corpus(corpus.url)
        assert not checked.fs.answered  # type: ignore[attr-defined]
        if there:
            assert checked.committed() == {0, 1, 2} and checked.fs.answered  # type: ignore[attr-defined]
        swift.kill()
        back = threading.Timer(DOWN_S if there else 8.0, swift.start)  # longer than a wrong address is tried
        back.start()
        try:
            report = verify(checked) if there else _check(checked, _Planned(), 1)
        finally:
            back.join()
        assert report.problems == []


@pytest.mark.timeout(100)
def test_what_a_server_that_is_down_does_not_give_is_not_corrupt(
    swift: Swift, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_corpus(corpus.url)
    monkeypatch.setattr(made.fs, "retry_budget_s", 1.0)
    committed, planned = made.committed(), made.read_run()
    monkeypatch.setattr(made, "committed", lambda: committed)
    monkeypatch.setattr(made, "read_run", lambda: planned)
    monkeypatch.setattr(import_module("hybridiff.corpus.verify"), "_has_record", lambda _: True)
    monkeypatch.setattr(made, "names", lambda _: [])
    swift.kill()
    try:
        report = verify(made)
    finally:
        swift.start()
    assert (report.unreadable, report.corrupt, report.missing, report.damaged) == (3, 0, 0, {}) and not report.whole


def test_a_small_object_is_one_request(proxy: FaultyProxy, corpus: Corpus) -> None:
    proxy.method, proxy.faults = "POST", [500]
    publish_bytes(corpus.fs, corpus.path("small"), b"small", sweep=False)
    assert proxy.faults == [500] and corpus.read("small") == b"small"


def test_parts_are_sent_at_once_and_put_together_in_order(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    from hybridiff.storage.s3 import PARTS_AT_ONCE, RetryingS3

    send, on_their_way, most = RetryingS3._call_s3, [0], [0]

    async def watched(self: RetryingS3, method: str, *options: Any, **given: Any) -> Any:
        on_their_way[0] += method == "upload_part"
        most[0] = max(most[0], on_their_way[0])
        try:
            if given.get("PartNumber") == 1:
                await asyncio.sleep(1)  # it arrives after others
            return await send(self, method, *options, **given)
        finally:
            on_their_way[0] -= method == "upload_part"

    monkeypatch.setattr(RetryingS3, "_call_s3", watched)
    data = np.random.default_rng(0).bytes(6 * PART_BYTES + 12345)
    publication = publish_bytes(corpus.fs, corpus.path("large"), data, sweep=False)
    assert corpus.read("large") == data
    assert (publication.bytes, publication.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert 1 < most[0] <= PARTS_AT_ONCE


def test_a_discarded_upload_is_gone_with_all_its_parts(corpus: Corpus) -> None:
    with pytest.raises(OSError, match="given up"), publishing(corpus.fs, corpus.path("large"), sweep=False) as handle:
        for _ in range(8):
            handle.write(bytes(PART_BYTES))
        raise OSError("given up")
    assert uploads(corpus) == [] and files(corpus) == {}


def test_a_silent_server_is_waited_for_no_longer_than_said(
    proxy: FaultyProxy, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hybridiff.storage.s3 import RetryingS3

    monkeypatch.setattr(RetryingS3, "read_timeout", 0.5)
    monkeypatch.setattr(RetryingS3, "connect_timeout", 0.5)
    RetryingS3.clear_instance_cache()
    corpus = Corpus(corpus.url)
    fs: Any = corpus.fs
    fs.retry_budget_s = 2.0
    proxy.method, proxy.faults = "GET", 60 * ["silent"]
    with pytest.raises(OSError, match="imeout"):
        corpus.read("run.json")
    tried, proxy.faults = proxy.seen, []
    assert 2 <= tried <= 3 * RetryingS3.retries  # in the time for four; a busy machine sends fewer


def test_the_attempts_of_the_libraries_are_as_shipped(corpus: Corpus) -> None:
    fs: Any = corpus.fs
    config = fs.s3.meta.config
    assert (config.retries["total_max_attempts"], fs.retries) == (1, 3)
    assert (config.connect_timeout, config.read_timeout) == (5, 15)


def test_a_slow_server_is_waited_for(proxy: FaultyProxy, corpus: Corpus) -> None:
    proxy.faults = 3 * ["slow"]
    made = make_corpus(corpus.url)
    assert proxy.seen == 3 and verify(made).whole


def test_what_is_raised_in_the_end_names_the_object_and_is_not_retried_by_s3fs() -> None:
    from botocore.exceptions import EndpointConnectionError, NoCredentialsError

    from hybridiff.storage.s3 import is_transient, storage_error

    request = {"Bucket": "bucket", "Key": "corpus/images/00000.tar", "UploadId": "7"}
    said = str(storage_error(NoCredentialsError(), request))
    assert said == "s3://bucket/corpus/images/00000.tar: NoCredentialsError: Unable to locate credentials"
    for error in (EndpointConnectionError(endpoint_url="x"), TimeoutError("read"), ConnectionResetError("reset")):
        assert type(storage_error(error, request)) is StorageError
    assert str(storage_error(ConnectionResetError("reset"), {})) == "reset"
    assert is_transient(OSError(errno.EBUSY, "slow down")) and not is_transient(OSError(errno.ENOSYS, "not implemented"))
