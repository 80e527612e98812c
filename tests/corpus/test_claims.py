"""Of several owners one gets a shard; who dies loses it; who lost it does not publish."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybridiff.corpus import Corpus, ShardWriter
from hybridiff.corpus.claimed import at_work
from hybridiff.corpus.claims import Claims, DrawStopped, ShardTaken
from hybridiff.corpus.layout import claim_name
from hybridiff.corpus.record import RunRecord
from hybridiff.corpus.renewal import Renewal
from hybridiff.errors import UsageError
from hybridiff.storage.publish import publish_bytes
from tests.corpus.corpora import PNG, RUN_VALUES, USER_SCHEMA, files, result, write_shard
from tests.corpus.leases import LEASE_S, Clock, claims, commit, live_claims


def test_every_shard_is_drawn_once_by_all_owners_together(url: str, clock: Clock) -> None:
    corpus = Corpus(url)
    one, two = (claims(corpus, name, clock, 4) for name in ("one", "two"))
    drawn = [one.draw(), two.draw(), two.draw(), one.draw()]
    assert sorted(index for index in drawn if index is not None) == [0, 1, 2, 3]
    assert sorted(one.held | two.held) == [0, 1, 2, 3]
    assert len(live_claims(corpus)) == 4


def test_what_is_committed_is_not_drawn_and_leaves_no_claim(url: str, clock: Clock) -> None:
    corpus = Corpus(url)
    write_shard(corpus, 1)
    one = claims(corpus, "one", clock)
    while (index := one.draw()) is not None:
        assert index != 1
        commit(one, corpus, index)
    assert corpus.committed() == {0, 1, 2}
    assert live_claims(corpus) == [] and one.held == frozenset()
    assert clock.now == 1000.0, "nobody else is at work: nothing to wait for"


def test_the_shards_of_who_died_are_taken_over_after_a_lease(url: str, clock: Clock) -> None:
    corpus = Corpus(url)
    dead, heir = claims(corpus, "dead", clock, 1), claims(corpus, "heir", clock, 1)
    assert dead.draw() == 0
    assert heir.draw() == 0
    assert LEASE_S <= clock.now - 1000 < 1.2 * LEASE_S
    commit(heir, corpus, 0)
    assert corpus.committed() == {0} and live_claims(corpus) == []


def test_the_shards_of_who_works_are_left_to_him(url: str, clock: Clock) -> None:
    corpus = Corpus(url)
    slow = claims(corpus, "slow", clock, 1)
    early = Claims(corpus, 1, LEASE_S, "early", clock, lambda seconds: (clock.sleep(seconds), slow.renew())[0])
    assert slow.draw() == 0
    assert early.draw() is None
    assert clock.now - 1000 < LEASE_S / 2, "one renewal is proof enough"
    commit(slow, corpus, 0)


def test_who_lets_go_leaves_the_shard_to_others_at_once(url: str, clock: Clock) -> None:
    corpus = Corpus(url)
    one, two = (claims(corpus, name, clock, 1) for name in ("one", "two"))
    assert one.draw() == 0
    one.release_all()
    assert two.draw() == 0 and clock.now == 1000.0
    one.release(0)
    assert live_claims(corpus) == [claim_name(0, 0)], "nobody removes another's claim"


def test_who_let_a_shard_go_unfinished_does_not_draw_it_again(url: str, clock: Clock) -> None:
    corpus = Corpus(url)
    one = claims(corpus, "one", clock, 2)
    first = one.draw()
    assert first is not None
    one.release(first)
    assert one.draw() == 1 - first and one.draw() is None
    assert claims(corpus, "two", clock, 2).draw() == first


def test_who_is_to_stop_draws_nothing_but_says_so_only_if_something_is_left(url: str, clock: Clock) -> None:
    corpus = Corpus(url)
    one, two = (claims(corpus, name, clock, 1) for name in ("one", "two"))
    with pytest.raises(DrawStopped):
        one.draw(lambda: True)
    assert live_claims(corpus) == [] and clock.now == 1000.0
    assert two.draw() == 0
    with pytest.raises(DrawStopped):  # while it watches the other's claim
        one.draw(lambda: clock.now > 1000.0)
    assert clock.now - 1000 < LEASE_S / 2
    commit(two, corpus, 0)
    assert one.draw(lambda: True) is None


def test_at_work_is_who_holds_claims_that_have_not_expired_on_shards_that_are_not_committed(url: str, clock: Clock) -> None:
    corpus = Corpus(url)
    assert at_work(corpus, clock) == []
    one, two = (claims(corpus, name, clock) for name in ("one", "two"))
    index = one.draw()
    assert two.draw() is not None and at_work(corpus, clock) == ["one", "two"]
    write_shard(corpus, index or 0)  # its claim is still there
    assert at_work(corpus, clock) == ["two"]
    clock.sleep(LEASE_S)
    assert at_work(corpus, clock) == []


def test_no_claim_is_made_where_the_output_was_removed(tmp_path: Path, clock: Clock) -> None:
    corpus = Corpus(str(tmp_path / "corpus"))
    corpus.start_run(RunRecord({}, {}))
    shutil.rmtree(tmp_path / "corpus")
    with pytest.raises(FileNotFoundError, match="was removed during the run"):
        claims(corpus, "one", clock).draw()
    assert list(tmp_path.iterdir()) == []


def test_a_renewed_claim_does_not_expire(url: str, clock: Clock) -> None:
    corpus = Corpus(url)
    one, two = (claims(corpus, name, clock, 2) for name in ("one", "two"))
    mine = one.draw()
    for _ in range(10):
        clock.sleep(0.9 * LEASE_S)
        one.renew()
    assert two.draw() == 1 - (mine or 0) and one.held == {mine}


def test_whoever_lost_the_lease_gives_way_whether_the_heir_is_done_or_not(url: str, clock: Clock) -> None:
    corpus = Corpus(url)
    for done in (False, True):
        one, two = (claims(corpus, name, clock, 1 + done) for name in ("one", "two"))
        index = one.draw()
        assert index == int(done)
        clock.sleep(1.1 * LEASE_S)
        assert two.draw() == index
        if done:
            commit(two, corpus, index)
        before = files(corpus)
        with pytest.raises(ShardTaken, match=f"shard {index} is another owner's"):
            commit(one, corpus, index)
        assert files(corpus) == before and one.held == frozenset()
        if not done:
            commit(two, corpus, index)


def test_of_two_that_both_believe_to_hold_it_the_first_marker_stays(url: str, clock: Clock) -> None:
    corpus = Corpus(url)
    one = claims(corpus, "one", clock, 1)
    assert one.draw() == 0
    commit(one, corpus, 0)
    marker = files(corpus)["commits/00000.json"]
    writer = ShardWriter(corpus, 0, RUN_VALUES, USER_SCHEMA, PNG, lambda: None)
    writer.write(result(0))
    with pytest.raises(ShardTaken):
        writer.commit({})
    assert files(corpus)["commits/00000.json"] == marker


def test_a_claim_that_nobody_can_read_is_taken_over(url: str, clock: Clock) -> None:
    corpus = Corpus(url)
    corpus.publish(claim_name(0, 7), b"garbage")
    one = claims(corpus, "one", clock, 1)
    assert one.draw() == 0
    assert live_claims(corpus) == [claim_name(0, 7), claim_name(0, 8)]
    assert json.loads(corpus.read(claim_name(0, 8))) == {"owner": "one", "expires": 1000.0 + LEASE_S}


def failing_for(corpus: Corpus, name: str, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a call on one file of a corpus fail."""
    real = getattr(type(corpus.fs), call)

    def fail(self: Any, path: str, *given: Any, **named: Any) -> Any:
        if path.endswith(name):
            raise TimeoutError("no answer")
        return real(self, path, *given, **named)

    monkeypatch.setattr(type(corpus.fs), call, fail)


def test_a_claim_that_cannot_be_renewed_costs_the_others_nothing(url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus(url)
    one = claims(corpus, "one", clock)
    assert {one.draw(), one.draw(), one.draw()} == {0, 1, 2}
    first = clock.now + LEASE_S
    clock.now += LEASE_S / 2
    failing_for(corpus, claim_name(0, 0), "cat_file", monkeypatch)
    with pytest.raises(TimeoutError, match="no answer"):
        one.renew()
    monkeypatch.undo()
    expiries = [json.loads(corpus.read(claim_name(index, 0)))["expires"] for index in range(3)]
    assert expiries == [first, clock.now + LEASE_S, clock.now + LEASE_S] and one.held == {0, 1, 2}


def test_a_claim_that_cannot_be_let_go_at_the_end_costs_the_others_nothing(
    url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = Corpus(url)
    one = claims(corpus, "one", clock)
    assert {one.draw(), one.draw(), one.draw()} == {0, 1, 2}
    first = next(iter(one._held))
    failing_for(corpus, claim_name(first, 0), "rm_file", monkeypatch)
    with Renewal(one, LEASE_S):
        pass
    assert corpus.names("claims") == [claim_name(first, 0).partition("/")[2]]


def test_where_nothing_is_created_only_if_absent_claims_are_refused() -> None:
    corpus = Corpus("memory://x")
    corpus.fs = type("Elsewhere", (), {"protocol": "sftp"})()
    with pytest.raises(UsageError, match=r"data.assignment is 'claims' and .*; allowed: local files or s3, or static"):
        Claims(corpus, 1, LEASE_S)


class Requests:
    """Counts what is asked of a corpus."""

    def __init__(self, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read: list[str] = []
        self.listed: list[str] = []
        for name, seen in (("read", self.read), ("names", self.listed)):
            monkeypatch.setattr(corpus, name, self._counted(getattr(corpus, name), seen))

    @staticmethod
    def _counted(call: Callable[[str], Any], seen: list[str]) -> Callable[[str], Any]:
        return lambda name: (seen.append(name), call(name))[1]


def test_a_draw_asks_for_little_however_many_others_there_are(url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus(url)
    for index in range(50):
        corpus.publish(claim_name(index, 0), json.dumps({"owner": "other", "expires": clock.now + LEASE_S}).encode())
    one = claims(corpus, "one", clock, 60)
    requests = Requests(corpus, monkeypatch)
    drawn = {one.draw() for _ in range(5)}
    assert len(drawn) == 5 and drawn <= set(range(50, 60))
    assert requests.listed == ["claims", "commits", ""], "once for all five: claims, markers, and after the first claim locks"
    asked = [name for name in requests.read if name.startswith("claims/")]
    assert sorted(asked) == sorted(claim_name(index or 0, 0) for index in drawn), "its own, to see that they are"
    clock.sleep(LEASE_S / 2)
    assert one.draw() in range(50, 60) and requests.listed == ["claims", "commits", "", "claims", "commits"], (
        "a listing grows old"
    )


def test_a_stale_listing_costs_no_shard_and_no_claim(url: str, clock: Clock) -> None:
    corpus = Corpus(url)
    one, two = (claims(corpus, name, clock, 6) for name in ("one", "two"))
    mine, others = [one.draw()], [two.draw(), two.draw()]
    assert others[0] is not None
    commit(two, corpus, others[0])
    while (index := one.draw()) is not None:
        mine.append(index)
        if len(mine) == 4:
            break
    assert sorted([*mine, *others]) == list(range(6))
    assert sorted(live_claims(corpus)) == sorted(claim_name(i, 0) for i in [*mine, others[1]] if i is not None)


def test_a_takeover_while_a_claim_is_renewed_is_seen(url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus(url)
    one, two = (claims(corpus, name, clock, 1) for name in ("one", "two"))
    assert one.draw() == 0
    clock.sleep(1.1 * LEASE_S)

    def take_over_first(*given: Any, **options: Any) -> Any:
        monkeypatch.undo()
        assert two.draw() == 0
        return publish_bytes(*given, **options)

    monkeypatch.setattr("hybridiff.corpus.claim_files.publish_bytes", take_over_first)
    with pytest.raises(ShardTaken):
        one.require(0)
    assert one.held == frozenset() and two.held == {0}
