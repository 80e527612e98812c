"""Leases on a real S3 server: one owner wins, an expired one is replaced, and neither loses its run for the other."""

import threading
from functools import partial
from typing import Any

import pytest

from hybridiff.corpus import Corpus, ShardWriter, verify
from hybridiff.corpus.background import BackgroundWriter
from hybridiff.corpus.layout import LEASES, lease_of
from hybridiff.storage.lease import Leases
from tests.corpus.corpora import PNG, RUN_VALUES, USER_SCHEMA, record
from tests.optional import needs
from tests.services.proxy import FaultyProxy
from tests.storage.leases import Clock, leases
from tests.storage.test_s3 import big, uploads

needs("s3fs", "s3")
TAR = "corpus/images/00000.tar"
LEASE_S = 120.0  # the shortest here


def shard_leases(corpus: Corpus, owner: str, clock: Clock) -> Leases:
    return leases(corpus, owner, clock, is_done=corpus.is_committed)


def background(corpus: Corpus, one: Leases) -> BackgroundWriter:
    def open_shard(index: int) -> ShardWriter:
        return ShardWriter(corpus, index, RUN_VALUES, USER_SCHEMA, PNG, partial(one.require, lease_of(index)))

    def release(index: int) -> None:
        one.release(lease_of(index))

    return BackgroundWriter(open_shard, PNG, closed=release, is_transient=corpus.is_transient)


def wait_for_uploads(corpus: Corpus, number: int) -> None:
    while len(uploads(corpus)) < number:
        pass


@pytest.mark.timeout(120)
def test_a_new_owner_does_not_abort_the_upload_of_an_old_one_which_gives_way(corpus: Corpus, clock: Clock) -> None:
    corpus.start_run(record(plan={"rows": 4, "shards": 1, "content": "0"}))
    old, new = shard_leases(corpus, "old", clock), shard_leases(corpus, "new", clock)
    assert old.acquire(lease_of(0))
    slow = background(corpus, old)
    slow.put(0, [big(0), big(1)], False, {})
    wait_for_uploads(corpus, 1)
    clock.sleep(1.1 * LEASE_S)
    assert new.acquire(lease_of(0)) and corpus.names(LEASES) == ["00000.0.json", "00000.1.json"]
    quick = background(corpus, new)
    quick.put(0, [big(0), big(1)], False, {})
    wait_for_uploads(corpus, 2)
    assert uploads(corpus) == [TAR, TAR]
    quick.put(0, [big(2), big(3)], True, {})
    quick.close()
    assert uploads(corpus) == [] and corpus.committed() == {0}
    slow.put(0, [big(2), big(3)], True, {})
    slow.close()
    assert slow.lost == {} and uploads(corpus) == [] and verify(corpus).whole and corpus.names(LEASES) == []


@pytest.mark.timeout(120)
def test_an_upload_that_somebody_aborted_costs_its_shard_alone(corpus: Corpus, clock: Clock) -> None:
    one = shard_leases(corpus, "one", clock)
    assert one.acquire(lease_of(0)) and one.acquire(lease_of(1))
    writer = background(corpus, one)
    writer.put(0, [big(0), big(1)], False, {})
    wait_for_uploads(corpus, 1)
    fs: Any = corpus.fs
    fs.clear_multipart_uploads(corpus.root.partition("/")[0])
    writer.put(0, [big(2), big(3)], True, {})
    writer.put(1, [big(4)], True, {})
    writer.close()
    assert list(writer.lost) == [0] and corpus.committed() == {1}


@pytest.mark.timeout(120)
def test_of_owners_that_race_for_one_lease_one_keeps_it(corpus: Corpus, clock: Clock) -> None:
    owners = [leases(corpus, f"owner {n}", clock, sleep=lambda _: None) for n in range(4)]
    together = threading.Barrier(len(owners))

    def work(one: Leases) -> None:
        together.wait()
        one.acquire_next(lambda _: ["a"])

    workers = [threading.Thread(target=work, args=(one,)) for one in owners]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for one in owners:  # Swift may let several create it in the same moment
        one.renew()
    assert sorted(len(one.held) for one in owners) == [0, 0, 0, 1] and corpus.names(LEASES) == ["a.0.json"]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("fault", ["lost", 503, "cut"])
def test_a_lease_whose_creation_is_answered_late_or_not_is_held_once(
    proxy: FaultyProxy, corpus: Corpus, clock: Clock, fault: int | str
) -> None:
    one, two = leases(corpus, "one", clock), leases(corpus, "two", clock)
    proxy.text, proxy.faults = "leases/", [fault]
    assert one.acquire_next(lambda _: ["a"]) == "a" and clock.passed_s == 0 and proxy.seen == 1
    proxy.faults = []
    assert corpus.names(LEASES) == ["a.0.json"] and uploads(corpus) == [] and one.held == {"a"}
    assert two._take("a", 0) is False, "it is created only if absent, all the same"
