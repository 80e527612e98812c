"""Claims on a real S3 server: one owner wins, an expired one is replaced, and neither loses its run for the other."""

import threading
from typing import Any

import pytest

from hybridiff.corpus import Corpus, ShardWriter, verify
from hybridiff.corpus.background import BackgroundWriter
from hybridiff.corpus.claims import Claims
from hybridiff.corpus.layout import claim_name
from tests.corpus.corpora import PNG, RUN_VALUES, USER_SCHEMA, record
from tests.corpus.leases import LEASE_S, Clock, claims, commit, live_claims
from tests.services.proxy import FaultyProxy
from tests.storage.test_s3 import big, uploads

pytest.importorskip("s3fs", reason="needs s3fs, of the dev extra")
TAR = "corpus/images/00000.tar"


def background(corpus: Corpus, one: Claims) -> BackgroundWriter:
    def open_shard(index: int) -> ShardWriter:
        return ShardWriter(corpus, index, RUN_VALUES, USER_SCHEMA, PNG, lambda: one.require(index))

    return BackgroundWriter(open_shard, PNG, closed=one.release, passing=corpus.passing)


def wait_for_uploads(corpus: Corpus, number: int) -> None:
    while len(uploads(corpus)) < number:
        pass


@pytest.mark.timeout(120)
def test_a_new_owner_does_not_abort_the_upload_of_an_old_one_which_gives_way(corpus: Corpus, clock: Clock) -> None:
    corpus.start_run(record(plan={"rows": 4, "shards": 1, "content": "0"}))
    old, new = (claims(corpus, name, clock, 1) for name in ("old", "new"))
    assert old.draw() == 0
    slow = background(corpus, old)
    slow.put(0, [big(0), big(1)], False, {})
    wait_for_uploads(corpus, 1)
    clock.sleep(1.1 * LEASE_S)
    assert new.draw() == 0
    quick = background(corpus, new)
    quick.put(0, [big(0), big(1)], False, {})
    wait_for_uploads(corpus, 2)
    assert uploads(corpus) == [TAR, TAR]
    quick.put(0, [big(2), big(3)], True, {})
    quick.close()
    assert uploads(corpus) == [] and corpus.committed() == {0}
    slow.put(0, [big(2), big(3)], True, {})
    slow.close()
    assert slow.lost == {} and uploads(corpus) == [] and verify(corpus).whole and live_claims(corpus) == []


@pytest.mark.timeout(120)
def test_an_upload_that_somebody_aborted_costs_its_shard_alone(corpus: Corpus, clock: Clock) -> None:
    one = claims(corpus, "one", clock, 2)
    first, second = one.draw(), one.draw()
    assert first is not None and second is not None
    writer = background(corpus, one)
    writer.put(first, [big(0), big(1)], False, {})
    wait_for_uploads(corpus, 1)
    fs: Any = corpus.fs
    fs.clear_multipart_uploads(corpus.root.partition("/")[0])
    writer.put(first, [big(2), big(3)], True, {})
    writer.put(second, [big(4)], True, {})
    writer.close()
    assert list(writer.lost) == [first] and corpus.committed() == {second}


@pytest.mark.timeout(120)
def test_the_shards_of_who_died_are_taken_over(corpus: Corpus, clock: Clock) -> None:
    dead, heir = claims(corpus, "dead", clock, 1), claims(corpus, "heir", clock, 1)
    assert dead.draw() == 0 and heir.draw() == 0
    assert LEASE_S <= clock.now - 1000 < 1.2 * LEASE_S
    assert live_claims(corpus) == [claim_name(0, 0), claim_name(0, 1)]
    commit(heir, corpus, 0)
    assert corpus.committed() == {0} and live_claims(corpus) == []


@pytest.mark.timeout(120)
def test_of_owners_that_race_for_one_claim_one_keeps_it(corpus: Corpus, clock: Clock) -> None:
    owners = [Claims(corpus, 1, LEASE_S, f"owner {n}", clock, lambda _: None) for n in range(4)]
    together = threading.Barrier(len(owners))

    def work(one: Claims) -> None:
        together.wait()
        one.draw()

    workers = [threading.Thread(target=work, args=(one,)) for one in owners]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for one in owners:  # Swift may let several create it in the same moment
        one.renew()
    assert sorted(len(one.held) for one in owners) == [0, 0, 0, 1] and live_claims(corpus) == [claim_name(0, 0)]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("fault", ["lost", 503, "cut"])
def test_a_claim_whose_creation_is_answered_late_or_not_is_held_once(
    proxy: FaultyProxy, corpus: Corpus, clock: Clock, fault: int | str
) -> None:
    one, two = (claims(corpus, name, clock, 1) for name in ("one", "two"))
    proxy.text, proxy.faults = "claims/", [fault]
    assert one.draw() == 0 and clock.now == 1000.0 and proxy.seen == 1
    proxy.faults = []
    assert live_claims(corpus) == [claim_name(0, 0)] and uploads(corpus) == [] and one.held == {0}
    assert two._take(0, 0) is False, "it is created only if absent, all the same"
