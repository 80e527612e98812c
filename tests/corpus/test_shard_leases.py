"""Leased shards on their way into the corpus: a lost one is released, and one that is another owner's by now is left alone."""

import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hybridiff.corpus import Corpus, ShardWriter, verify
from hybridiff.corpus.background import BackgroundWriter
from hybridiff.corpus.layout import LEASES, lease_of
from hybridiff.corpus.reader import failed_keys
from hybridiff.corpus.rewrite import ShardRewriter
from hybridiff.errors import StorageError
from hybridiff.storage.lease import LeaseLost, Leases
from tests.corpus.corpora import FAILED, PER_SHARD, PNG, RUN_VALUES, USER_SCHEMA, files, make_corpus, result, write_shard
from tests.storage.leases import LEASE_S, Clock, leases


@pytest.fixture
def clock() -> Clock:
    return Clock()


def shard_leases(corpus: Corpus, owner: str, clock: Clock) -> Leases:
    return leases(corpus, owner, clock, is_done=corpus.is_committed)


def writer_of(corpus: Corpus, one: Leases, index: int, kind: type[ShardWriter] = ShardWriter) -> ShardWriter:
    return kind(corpus, index, RUN_VALUES, USER_SCHEMA, PNG, lambda: one.require(lease_of(index)))


def background(corpus: Corpus, one: Leases, **given: Any) -> BackgroundWriter:
    return BackgroundWriter(partial(writer_of, corpus, one), PNG, closed=lambda index: one.release(lease_of(index)), **given)


def commit(corpus: Corpus, one: Leases, index: int) -> None:
    writer = writer_of(corpus, one, index)
    for place in range(PER_SHARD):
        writer.write(result(index * PER_SHARD + place))
    try:
        writer.commit({})
    finally:
        writer.discard()
        one.release(lease_of(index))


def test_a_lost_shard_is_released_for_others_and_the_next_is_committed(url: str, clock: Clock) -> None:
    corpus = Corpus(url)
    one, two = shard_leases(corpus, "one", clock), shard_leases(corpus, "two", clock)
    assert one.acquire(lease_of(0)) and one.acquire(lease_of(1))

    def open_shard(index: int) -> ShardWriter:
        if index == 0:
            raise OSError("503 Slow Down")
        return writer_of(corpus, one, index)

    writer = background(corpus, one, is_transient=lambda _: True)
    writer._open_shard = open_shard
    for index in (0, 1):
        writer.put(index, [result(index * PER_SHARD + place) for place in range(PER_SHARD)], True, {})
    writer.close()
    assert writer.lost == {0: "OSError: 503 Slow Down"} and corpus.committed() == {1}
    assert corpus.names(LEASES) == [] and two.acquire(lease_of(0)) and not two.acquire(lease_of(1))


def test_a_lease_that_cannot_be_released_costs_no_shard(url: str) -> None:
    corpus = Corpus(url)

    def fail(_: int) -> None:
        raise OSError("503 Slow Down")

    def open_shard(index: int) -> ShardWriter:
        return ShardWriter(corpus, index, RUN_VALUES, USER_SCHEMA, PNG)

    writer = BackgroundWriter(open_shard, PNG, closed=fail)
    writer.put(0, [result(place) for place in range(PER_SHARD)], True, {})
    writer.close()
    assert corpus.committed() == {0} and writer.lost == {}


@pytest.mark.parametrize("done", [False, True])
def test_an_owner_that_lost_the_lease_gives_way_whether_the_new_one_is_done_or_not(url: str, clock: Clock, done: bool) -> None:
    corpus = Corpus(url)
    old, new = shard_leases(corpus, "old", clock), shard_leases(corpus, "new", clock)
    assert old.acquire(lease_of(0))
    clock.sleep(1.1 * LEASE_S)
    assert new.acquire(lease_of(0))
    if done:
        commit(corpus, new, 0)
    before = files(corpus)
    with pytest.raises(LeaseLost):
        commit(corpus, old, 0)
    assert files(corpus) == before and old.held == frozenset()


def test_of_two_that_both_believe_to_hold_it_the_first_marker_stays(url: str, clock: Clock) -> None:
    corpus = Corpus(url)
    one = shard_leases(corpus, "one", clock)
    assert one.acquire(lease_of(0))
    commit(corpus, one, 0)
    marker = files(corpus)["commits/00000.json"]
    writer = ShardWriter(corpus, 0, RUN_VALUES, USER_SCHEMA, PNG, lambda: None)
    writer.write(result(0))
    with pytest.raises(LeaseLost, match="shard 0 was committed by another process"):
        writer.commit({})
    assert files(corpus)["commits/00000.json"] == marker


def test_the_background_writer_drops_a_shard_whose_lease_is_lost_and_goes_on(url: str, clock: Clock) -> None:
    corpus = Corpus(url)
    one, two = shard_leases(corpus, "one", clock), shard_leases(corpus, "two", clock)
    assert one.acquire(lease_of(0)) and one.acquire(lease_of(1))
    clock.sleep(1.1 * LEASE_S)
    assert two.acquire(lease_of(0))
    writer = background(corpus, one)
    for index in (0, 1):
        writer.put(index, [result(n) for n in range(PER_SHARD)], True, {})
    writer.close()
    assert corpus.committed() == {1} and one.held == frozenset() and two.held == {lease_of(0)} and writer.lost == {}


def test_a_new_owner_leaves_the_files_of_the_old_one_until_it_has_committed(url: str, clock: Clock) -> None:
    corpus = Corpus(url)
    old, new = shard_leases(corpus, "old", clock), shard_leases(corpus, "new", clock)

    def parts() -> list[str]:
        return [name for name in files(corpus) if name.endswith(".tmp") and not name.startswith(LEASES)]

    def wait_for_parts(number: int) -> None:
        while len(parts()) < number:
            time.sleep(0.01)

    assert old.acquire(lease_of(0))
    slow = background(corpus, old)
    slow.put(0, [result(0)], False, {})
    wait_for_parts(1)
    clock.sleep(1.1 * LEASE_S)
    assert new.acquire(lease_of(0))
    quick = background(corpus, new)
    quick.put(0, [result(0)], False, {})
    wait_for_parts(2)
    quick.put(0, [result(place) for place in range(1, PER_SHARD)], True, {})
    quick.close()
    assert parts() == []
    before = files(corpus)
    slow.put(0, [result(1)], False, {})
    slow.put(0, [result(2), result(3)], True, {})
    slow.close()
    assert slow.lost == {} and files(corpus) == before and corpus.committed() == {0}


@pytest.mark.parametrize("still_held", [True, False])
def test_an_error_with_a_shard_that_is_anothers_by_now_ends_nothing(url: str, clock: Clock, still_held: bool) -> None:
    corpus = Corpus(url)
    old, new = shard_leases(corpus, "old", clock), shard_leases(corpus, "new", clock)
    assert old.acquire(lease_of(0))

    def open_shard(index: int) -> ShardWriter:
        writer = writer_of(corpus, old, index)
        if not still_held:
            clock.sleep(1.1 * LEASE_S)
            assert new.acquire(lease_of(0))
        writer.write = lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError("NoSuchUpload"))  # type: ignore[method-assign]
        return writer

    writer = background(corpus, old)
    writer._open_shard = open_shard
    writer.put(0, [result(0)], True, {})
    with pytest.raises(StorageError, match="NoSuchUpload") if still_held else nullcontext():
        writer.close()
    assert writer.lost == {} and corpus.committed() == set()


def retried(corpus: Corpus, one: Leases) -> ShardRewriter:
    assert one.acquire(lease_of(1))
    writer = writer_of(corpus, one, 1, ShardRewriter)
    assert isinstance(writer, ShardRewriter)
    writer.write(result(PER_SHARD + FAILED))
    return writer


def test_failed_rows_are_retried_under_a_lease_beside_other_runs(url: str, clock: Clock) -> None:
    corpus = make_corpus(url)
    one, two = leases(corpus, "one", clock), leases(corpus, "two", clock)
    writer = retried(corpus, one)
    assert not two.acquire(lease_of(1)) and two.acquire(lease_of(2))
    assert writer.commit({})["failed"] == 0 and verify(corpus).whole
    one.release(lease_of(1))
    assert two.acquire(lease_of(1)) and failed_keys(corpus, 1) == frozenset()


def test_a_retry_that_lost_its_lease_before_it_removed_the_marker_changes_nothing(url: str, clock: Clock) -> None:
    corpus = make_corpus(url)
    writer = retried(corpus, leases(corpus, "old", clock))
    clock.sleep(1.1 * LEASE_S)
    assert leases(corpus, "new", clock).acquire(lease_of(1))
    before = files(corpus)
    with pytest.raises(LeaseLost):
        writer.commit({})
    writer.discard()
    assert {n: d for n, d in files(corpus).items() if d != before[n]} == {} and verify(corpus).whole


@pytest.mark.parametrize("new_is_done", [False, True])
def test_a_retry_that_lost_its_lease_after_that_puts_nothing_back(
    url: str, clock: Clock, new_is_done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus(url)
    old, new = leases(corpus, "old", clock), shard_leases(corpus, "new", clock)
    writer = retried(corpus, old)
    remove = Corpus.remove

    def stall(self: Corpus, name: str) -> None:
        remove(self, name)
        if name == "commits/00001.json":
            clock.sleep(1.1 * LEASE_S)
            assert new.acquire(lease_of(1))
            if new_is_done:
                commit(corpus, new, 1)

    monkeypatch.setattr(Corpus, "remove", stall)
    with pytest.raises(LeaseLost):
        writer.commit({})
    writer.discard()
    monkeypatch.undo()
    assert corpus.committed() == ({0, 1, 2} if new_is_done else {0, 2})
    report = verify(corpus)
    assert report.corrupt == 0 and report.missing == int(not new_is_done)


def test_a_retry_that_fails_after_its_lease_was_lost_puts_no_marker_over_the_new_owners_files(
    url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus(url)
    writer = retried(corpus, leases(corpus, "old", clock))
    publish = ShardWriter._publish

    def fail(self: ShardWriter, timings: dict[str, Any]) -> dict[str, Any]:
        clock.sleep(1.1 * LEASE_S)
        assert shard_leases(corpus, "new", clock).acquire(lease_of(1))
        raise OSError("no answer")

    monkeypatch.setattr(ShardWriter, "_publish", fail)
    with pytest.raises(OSError, match="no answer"):
        writer.commit({})
    monkeypatch.setattr(ShardWriter, "_publish", publish)
    assert corpus.committed() == {0, 2}


def test_no_lease_is_acquired_where_the_output_was_removed(tmp_path: Path, clock: Clock) -> None:
    corpus = make_corpus(str(tmp_path / "corpus"))
    corpus.fs.rm(corpus.root, recursive=True)
    one = shard_leases(corpus, "one", clock)

    def left(look: bool) -> list[str]:
        corpus.check_there()
        return [lease_of(0)]

    with pytest.raises(FileNotFoundError, match="was removed during the run"):
        one.acquire_next(left)
    assert list(tmp_path.iterdir()) == []


def test_a_shard_of_a_dead_owner_is_made_by_a_new_one_without_a_trace(url: str, clock: Clock) -> None:
    corpus = Corpus(url)
    dead, new = shard_leases(corpus, "dead", clock), shard_leases(corpus, "new", clock)
    assert dead.acquire(lease_of(0))
    left = writer_of(corpus, dead, 0)
    left.write(result(0))
    assert new.acquire_next(lambda _: [lease_of(0)]) == lease_of(0)
    commit(corpus, new, 0)
    assert corpus.committed() == {0} and corpus.names(LEASES) == []
    assert not [name for name in files(corpus) if name.endswith(".tmp")]
    left.discard()
    write_shard(corpus, 1)
