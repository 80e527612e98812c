"""Regenerated failed rows: only they change, and the shard is committed anew or not at all."""

import dataclasses
from collections.abc import Callable

import pyarrow.parquet as pq
import pytest

from hybridiff.corpus import Corpus, ShardWriter, verify
from hybridiff.corpus.background import BackgroundWriter
from hybridiff.corpus.reader import ShardDamaged, failed_keys, read_samples, totals, with_failures
from hybridiff.corpus.rewrite import ShardRewriter
from hybridiff.storage.publish import Publication
from tests.corpus.corpora import FAILED, PER_SHARD, PNG, RUN_VALUES, USER_SCHEMA, files, make_corpus, record, result, write_shard


def again(corpus: Corpus) -> ShardRewriter:
    writer = ShardRewriter(corpus, 1, RUN_VALUES, USER_SCHEMA, PNG)
    writer.write(dataclasses.replace(result(PER_SHARD + FAILED)))
    return writer


def test_only_what_failed_is_made_anew(url: str) -> None:
    corpus = make_corpus(url)
    before = files(corpus)
    assert with_failures(corpus, {0, 1, 2}) == ({0: 1, 1: 1, 2: 1}, {})
    assert failed_keys(corpus, 1) == {result(PER_SHARD + FAILED).sample.key}
    marker = again(corpus).commit({})
    assert (marker["rows"], marker["ok"], marker["failed"]) == (PER_SHARD, PER_SHARD, 0)
    assert with_failures(corpus, {0, 1, 2}) == ({0: 1, 2: 1}, {}) and failed_keys(corpus, 1) == frozenset()
    after = files(corpus)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"images/00001.tar", "metadata/00001.parquet", "commits/00001.json"} | (changed & {"stats/00001.json"})
    assert verify(corpus).whole
    rows = pq.read_table(corpus.fs.open(corpus.path("metadata/00001.parquet"))).to_pylist()
    assert [row["key"] for row in rows] == [result(PER_SHARD + place).sample.key for place in range(PER_SHARD)]


def test_images_inside_the_table_and_tars_without_sidecars_stay_so(url: str) -> None:
    corpus = Corpus(url)
    corpus.start_run(record())
    good = [result(place) for place in range(PER_SHARD) if place != FAILED]
    bad = dataclasses.replace(result(PER_SHARD), image=None, error="out of memory")
    first = ShardWriter(corpus, 0, RUN_VALUES, USER_SCHEMA, PNG, sidecar=False, embed_images=True)
    for one in [*good, bad]:
        first.write(one)
    first.commit({})
    writer = ShardRewriter(corpus, 0, RUN_VALUES, USER_SCHEMA, PNG, sidecar=False, embed_images=True)
    writer.write(dataclasses.replace(good[0], sample=bad.sample))
    assert writer.commit({})["failed"] == 0
    rows = pq.read_table(corpus.fs.open(corpus.path("metadata/00000.parquet"))).to_pylist()
    samples = list(read_samples(corpus.fs.open(corpus.path("images/00000.tar"))))
    assert [key for key, _ in samples] == [row["key"] for row in rows] == [one.sample.key for one in [*good, bad]]
    assert [files for _, files in samples] == [{"png": row["image"]["bytes"], "txt": row["prompt"].encode()} for row in rows]


def failing(monkeypatch: pytest.MonkeyPatch, ending: str, error: BaseException, late: bool = False) -> None:
    """Lets the publication of a file fail, before or, as where an answer is lost, after it has appeared."""
    commit = Publication.commit

    def fail(self: Publication) -> None:
        if self.path.endswith(ending):
            if late:
                commit(self)
            raise error
        commit(self)

    monkeypatch.setattr(Publication, "commit", fail)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("name", ["images/00001.tar", "metadata/00001.parquet", "stats/00001.json", "commits/00001.json"])
def test_a_retry_that_fails_leaves_the_old_shard_as_long_as_it_is_there(
    url: str, name: str, late: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = make_corpus(url)
    before = files(corpus)
    writer = again(corpus)
    failing(monkeypatch, name, OSError("no answer"), late)
    with pytest.raises(OSError, match="no answer"):
        writer.commit({})
    writer.discard()
    monkeypatch.undo()
    if name == "images/00001.tar" and not late:
        assert files(corpus) == before and caplog.records == []
    elif name == "commits/00001.json" and late:
        assert with_failures(corpus, {1}) == ({}, {}) and caplog.records == []
    else:
        assert corpus.committed() == {0, 2} and "shard 1 is not committed any more" in caplog.text
    report = verify(corpus)
    assert (report.corrupt, report.unreadable, report.missing) == (0, 0, 1 - (1 in corpus.committed())), report.problems
    assert not [name for name in files(corpus) if name.endswith(".tmp")]
    if 1 not in corpus.committed():
        write_shard(corpus, 1)
        after = files(corpus)
        assert {n for n in before if before[n] != after.get(n)} <= {"stats/00001.json"} and verify(corpus).whole


class Killed(BaseException):
    """Nothing that is left to do is done."""


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("name", ["images/00001.tar", "metadata/00001.parquet", "stats/00001.json", "commits/00001.json"])
def test_a_killed_retry_leaves_no_shard_that_is_not_what_its_marker_says(
    url: str, name: str, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus(url)
    writer = again(corpus)
    failing(monkeypatch, name, Killed(), late)
    with pytest.raises(Killed):
        writer.commit({})
    monkeypatch.undo()
    report = verify(corpus)
    assert report.corrupt == 0 and report.missing == int(not (late and name.startswith("commits")))
    write_shard(corpus, 1)
    assert verify(corpus).whole


@pytest.mark.parametrize("gone", [False, True])
def test_a_marker_that_storage_would_not_remove_or_did_so_silently_is_kept(
    url: str, gone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus(url)
    before = files(corpus)
    writer = again(corpus)
    remove = type(corpus.fs).rm_file

    def fail(self: object, path: str) -> None:
        if gone or not path.endswith("00001.json"):
            remove(self, path)
        if path.endswith("00001.json"):
            raise OSError("no answer")

    monkeypatch.setattr(type(corpus.fs), "rm_file", fail)
    with pytest.raises(OSError, match="no answer"):
        writer.commit({})
    monkeypatch.undo()
    assert files(corpus) == before and verify(corpus).whole


def test_a_full_disk_before_anything_is_replaced_changes_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    corpus = make_corpus(url)
    before = files(corpus)
    monkeypatch.setattr("pyarrow.parquet.ParquetWriter.write_table", fail)
    writer = again(corpus)
    with pytest.raises(OSError, match="disk full"):
        writer.commit({})
    writer.discard()
    monkeypatch.undo()
    assert files(corpus) == before and verify(corpus).whole


@pytest.mark.parametrize("error", [FileNotFoundError("the upload is gone"), OSError("disk full"), ValueError("refused")])
def test_what_fails_in_writing_the_new_shard_is_no_damage_of_the_old_one(
    url: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    corpus = make_corpus(url)
    writer = again(corpus)
    monkeypatch.setattr(writer, "_add", fail)
    with pytest.raises(OSError, match=str(error)) as failed:
        writer.commit({})
    writer.discard()
    assert not isinstance(failed.value, ShardDamaged) and verify(corpus).whole


def damaged(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


@pytest.mark.parametrize("name", ["images/00001.tar", "metadata/00001.parquet"])
@pytest.mark.parametrize("fault", [damaged, lambda data: data[: len(data) // 2], None])
def test_damage_is_refused_and_stays_as_it_is_for_verify(url: str, name: str, fault: Callable[[bytes], bytes] | None) -> None:
    corpus = make_corpus(url)
    if fault is None:
        corpus.fs.rm_file(corpus.path(name))
    else:
        corpus.publish(name, fault(corpus.read(name)))
    before = files(corpus)
    writer = again(corpus)
    with pytest.raises(ShardDamaged, match=rf"{name}.*; run hybridiff verify --repair"):
        writer.commit({})
    writer.discard()
    assert files(corpus) == before and list(verify(corpus).damaged) == [1]


def test_a_damaged_shard_is_lost_alone(url: str) -> None:
    corpus = make_corpus(url)
    for index in range(3):
        corpus.publish(f"images/{index:05d}.tar", damaged(corpus.read(f"images/{index:05d}.tar")))
    write_shard(corpus, 3)
    writer = BackgroundWriter(lambda index: ShardRewriter(corpus, index, RUN_VALUES, USER_SCHEMA, PNG), PNG)
    for index in range(4):
        writer.put(index, [result(index * PER_SHARD + FAILED)], True, {})
    writer.close()
    assert list(writer.lost) == [0, 1, 2], "however many in a row"
    assert all("verify --repair" in why for why in writer.lost.values()) and failed_keys(corpus, 3) == frozenset()


def test_what_cannot_be_read_of_markers_and_rows_is_said_with_what_to_do(url: str) -> None:
    corpus = make_corpus(url)
    corpus.publish("metadata/00001.parquet", b"garbage")
    with pytest.raises(ShardDamaged, match=r"metadata/00001.parquet in .* is damaged .*; run hybridiff verify --repair"):
        failed_keys(corpus, 1)
    for content in (b"garbage", b"[]", b'{"shard": 0}'):
        corpus.publish("commits/00000.json", content)
        failures, broken = with_failures(corpus, {0, 1})
        assert failures == {1: 1} and list(broken) == [0]
        with pytest.raises(ShardDamaged, match=r"commits/00000.json in .* is damaged .*; run hybridiff verify --repair"):
            totals(corpus, {0, 1})
