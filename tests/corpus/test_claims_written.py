"""Claimed shards on the background writer: what is lost is let go, and what is another's by now is left alone."""

import time
from contextlib import nullcontext
from functools import partial

import pytest

from hybridiff.corpus import Corpus, ShardWriter
from hybridiff.corpus.background import BackgroundWriter
from hybridiff.corpus.claims import Claims
from hybridiff.corpus.layout import claim_name
from hybridiff.errors import StorageError
from tests.corpus.corpora import PER_SHARD, PNG, RUN_VALUES, USER_SCHEMA, files, result
from tests.corpus.leases import LEASE_S, Clock, claims, live_claims


def test_a_lost_shard_is_let_go_for_others_and_the_next_is_committed(url: str, clock: Clock) -> None:
    corpus = Corpus(url)
    one = claims(corpus, "one", clock)
    lost, kept = one.draw(), one.draw()
    assert lost is not None and kept is not None

    def open_shard(index: int) -> ShardWriter:
        if index == lost:
            raise OSError("503 Slow Down")
        return ShardWriter(corpus, index, RUN_VALUES, USER_SCHEMA, PNG, lambda: one.require(index))

    writer = BackgroundWriter(open_shard, PNG, closed=one.release, passing=lambda _: True)
    for index in (lost, kept):
        writer.put(index, [result(index * PER_SHARD + place) for place in range(PER_SHARD)], True, {})
    writer.close()
    assert writer.lost == {lost: "OSError: 503 Slow Down"} and corpus.committed() == {kept}
    assert live_claims(corpus) == [] and one.draw() == 3 - lost - kept


def test_a_claim_that_cannot_be_let_go_costs_no_shard(url: str) -> None:
    corpus = Corpus(url)

    def fail(_: int) -> None:
        raise OSError("503 Slow Down")

    def open_shard(index: int) -> ShardWriter:
        return ShardWriter(corpus, index, RUN_VALUES, USER_SCHEMA, PNG)

    writer = BackgroundWriter(open_shard, PNG, closed=fail)
    writer.put(0, [result(place) for place in range(PER_SHARD)], True, {})
    writer.close()
    assert corpus.committed() == {0} and writer.lost == {}


def test_the_background_writer_drops_a_lost_shard_and_goes_on(url: str, clock: Clock) -> None:
    corpus = Corpus(url)
    one = claims(corpus, "one", clock)
    lost, kept = one.draw(), one.draw()
    clock.sleep(1.1 * LEASE_S)
    two = claims(corpus, "two", clock)
    while two.draw() != lost:
        pass
    two.release_all()  # but for the generation that it took the shard with, which stays
    corpus.publish(claim_name(lost or 0, 1), b"{}")

    def open_shard(index: int) -> ShardWriter:
        return ShardWriter(corpus, index, RUN_VALUES, USER_SCHEMA, PNG, lambda: one.require(index))

    writer = BackgroundWriter(open_shard, PNG, closed=one.release)
    for index in (lost, kept):
        assert index is not None
        writer.put(index, [result(n) for n in range(PER_SHARD)], True, {})
    writer.close()
    assert corpus.committed() == {kept} and one.held == frozenset()


def test_a_new_owner_leaves_the_files_of_the_old_one_until_it_has_committed(url: str, clock: Clock) -> None:
    corpus = Corpus(url)
    old, new = (claims(corpus, name, clock, 1) for name in ("old", "new"))
    writers: dict[str, ShardWriter] = {}

    def open_shard(one: Claims, index: int) -> ShardWriter:
        writers[one.owner] = ShardWriter(corpus, index, RUN_VALUES, USER_SCHEMA, PNG, lambda: one.require(index))
        return writers[one.owner]

    assert old.draw() == 0
    slow = BackgroundWriter(partial(open_shard, old), PNG, closed=old.release)
    slow.put(0, [result(0)], False, {})
    while "old" not in writers:
        time.sleep(0.01)
    clock.sleep(1.1 * LEASE_S)
    assert new.draw() == 0
    quick = BackgroundWriter(partial(open_shard, new), PNG, closed=new.release)
    quick.put(0, [result(0)], False, {})
    while "new" not in writers:
        time.sleep(0.01)
    assert len([name for name in files(corpus) if name.endswith(".tmp")]) == 2
    quick.put(0, [result(place) for place in range(1, PER_SHARD)], True, {})
    quick.close()
    assert not [name for name in files(corpus) if name.endswith(".tmp")]
    before = files(corpus)
    slow.put(0, [result(1)], False, {})
    slow.put(0, [result(2), result(3)], True, {})
    slow.close()
    assert slow.lost == {} and files(corpus) == before and corpus.committed() == {0}


@pytest.mark.parametrize("still_held", [True, False])
def test_an_error_of_a_shard_that_is_anothers_by_now_ends_nothing(url: str, clock: Clock, still_held: bool) -> None:
    corpus = Corpus(url)
    old = claims(corpus, "old", clock, 1)
    assert old.draw() == 0

    def open_shard(index: int) -> ShardWriter:
        writer = ShardWriter(corpus, index, RUN_VALUES, USER_SCHEMA, PNG, lambda: old.require(index))
        if not still_held:
            clock.sleep(1.1 * LEASE_S)
            assert claims(corpus, "new", clock, 1).draw() == 0
        writer.write = lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError("NoSuchUpload"))  # type: ignore[method-assign]
        return writer

    writer = BackgroundWriter(open_shard, PNG, closed=old.release)
    writer.put(0, [result(0)], True, {})
    said = r"images/00000\.tar .* FileNotFoundError: NoSuchUpload"
    with pytest.raises(StorageError, match=said) if still_held else nullcontext():
        writer.close()
    assert writer.lost == {} and corpus.committed() == set()
