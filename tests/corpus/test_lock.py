"""Two runs on one corpus: the second is told who holds it, and takes over only from one that is gone."""

import json
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hybridiff.cluster.signals import StopSignals
from hybridiff.corpus import Corpus
from hybridiff.corpus.claims import Claims, DrawStopped
from hybridiff.corpus.holder import STALE_S, Holder
from hybridiff.corpus.lock import RunLock
from hybridiff.corpus.lock_files import holders
from hybridiff.corpus.record import RunRecord
from hybridiff.errors import UsageError


def put(corpus: Corpus, **changed: Any) -> None:
    """A lock as another run would have left it."""
    corpus.publish("lock/000000.json", json.dumps({**vars(Holder.here("job-7")), **changed}).encode())


def test_the_second_is_refused_and_told_who_holds_it_and_since_when(url: str) -> None:
    corpus = Corpus(url)
    with RunLock(corpus, "job-7"):
        assert corpus.names("lock") == ["000000.json"]
        with pytest.raises(UsageError) as refused, RunLock(corpus):
            pass
        assert corpus.names("lock") == ["000000.json"]
    me = Holder.here()
    said = str(refused.value)
    assert f"is being written by process {me.pid} of job job-7 on {me.host}, since {time.strftime('%Y-', time.gmtime())}" in said
    assert "--force_unlock" in said
    assert corpus.names("lock") == []
    with RunLock(corpus):
        pass


def test_runs_with_claims_are_refused_only_where_one_without_is_at_work(url: str) -> None:
    corpus = Corpus(url)
    RunLock(corpus).share()
    with RunLock(corpus, "job-7"), pytest.raises(UsageError, match=r"is being written by process .* of job job-7"):
        RunLock(corpus).share()
    assert corpus.names("lock") == []


@pytest.mark.parametrize("part", [(0, 1), (2, 4)])
def test_a_run_with_claims_takes_the_corpus_by_force_from_one_without_which_notices(url: str, part: tuple[int, int]) -> None:
    corpus, told = Corpus(url), []
    with RunLock(corpus, part=part, taken=lambda: told.append("taken")) as first:
        first.beat()
        assert not first.lost
        RunLock(corpus, force=True).share()
        assert holders(corpus) == []
        first._write(exclusive=False)  # a sign of life that was on its way
        assert holders(corpus) == []
        first.beat()
        assert first.lost and told == ["taken"]
        assert Claims(corpus, 1, 60.0).draw() == 0
    with RunLock(corpus, part=part, force=True):
        assert len(holders(corpus)) == 1


def test_a_lock_of_a_run_that_is_gone_stops_nobody_with_claims(url: str) -> None:
    corpus = Corpus(url)
    put(corpus, machine="elsewhere", job="job-7")
    with pytest.raises(UsageError, match="of job job-7"):
        RunLock(corpus).share()
    RunLock(corpus, is_over=lambda holder: holder.job == "job-7").share()
    assert Claims(corpus, 1, 60.0).draw() == 0


def test_of_a_run_with_claims_and_one_without_that_start_together_the_one_with_claims_gives_way(url: str) -> None:
    corpus, told = Corpus(url), []
    RunLock(corpus).share()
    claims = Claims(corpus, 2, 60.0, taken=lambda: told.append("taken"))
    with RunLock(corpus) as lock:  # before the first claim
        with pytest.raises(DrawStopped):
            claims.draw()
        assert claims.lost and told == ["taken"] and corpus.names("claims") == []
        lock.beat()
        assert not lock.lost


def test_a_run_with_claims_that_lost_the_corpus_by_force_notices_when_it_renews_them(url: str) -> None:
    corpus, told = Corpus(url), []
    claims = Claims(corpus, 2, 60.0, taken=lambda: told.append("taken"))
    claims.draw()
    claims.renew()
    assert not claims.lost
    with RunLock(corpus, force=True):
        claims.renew()
        claims.renew()
        assert claims.lost and told == ["taken"]


def test_a_run_that_is_refused_for_claims_holds_the_corpus_at_no_time(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus(url)
    Claims(corpus, 2, 60.0, "far-1-ab").draw()
    monkeypatch.setattr(RunLock, "_write", lambda *_, **__: pytest.fail("those with claims would see it, and stop"))
    with pytest.raises(UsageError, match="is being written by far-1-ab, with claims"), RunLock(corpus):
        pass


def test_a_run_gives_way_to_claims_that_are_made_while_it_takes_the_corpus(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, write = Corpus(url), RunLock._write

    def late(lock: RunLock, exclusive: bool) -> None:
        Claims(corpus, 2, 60.0, "far-1-ab").draw()
        write(lock, exclusive)

    monkeypatch.setattr(RunLock, "_write", late)
    with pytest.raises(UsageError, match="is being written by far-1-ab, with claims"), RunLock(corpus):
        pass
    assert corpus.names("lock") == []


def test_a_run_without_claims_is_refused_while_one_with_claims_is_at_work(url: str) -> None:
    corpus = Corpus(url)
    claims = Claims(corpus, 2, 60.0, "far-1-ab")
    claims.draw()
    with pytest.raises(UsageError, match=r"is being written by far-1-ab, with claims; .* --force_unlock"), RunLock(corpus):
        pass
    assert corpus.names("lock") == []
    with RunLock(corpus, force=True):
        pass
    claims.release_all()
    with RunLock(corpus):
        pass


def test_force_takes_over_and_the_first_notices_and_is_told_to_end(url: str) -> None:
    corpus = Corpus(url)
    signals = StopSignals()
    with RunLock(corpus, taken=partial(signals.ask, "another run")) as first, RunLock(corpus, force=True) as second:
        assert corpus.names("lock") == ["000001.json"]
        first.beat()
        second.beat()
        assert (first.lost, second.lost) == (True, False)
        assert signals.asked() and signals.received == "another run"
        assert corpus.names("lock") == ["000001.json"]
    assert corpus.names("lock") == []


def test_a_process_of_this_machine_that_has_ended_holds_nothing(url: str) -> None:
    corpus = Corpus(url)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    put(corpus, pid=ended.pid, started=1)
    with RunLock(corpus):
        assert corpus.names("lock") == ["000001.json"]


def test_a_process_id_that_was_used_again_holds_nothing(url: str) -> None:
    put(Corpus(url), started=1)
    with RunLock(Corpus(url)):
        pass


@pytest.mark.parametrize(("silent_s", "refused"), [(STALE_S - 60, True), (STALE_S + 60, False)])
def test_of_another_machine_only_signs_of_life_are_known(url: str, silent_s: float, refused: bool) -> None:
    corpus = Corpus(url)
    put(corpus, host="far", machine="far", since=time.time() - 9000, seen=time.time() - silent_s)
    if refused:
        with pytest.raises(UsageError, match=r"process \d+ of job job-7 on far, since .* last seen 24\d s ago"), RunLock(corpus):
            pass
    else:
        with RunLock(corpus):
            pass


UNREADABLE = {
    "another version's": json.dumps(vars(Holder.here("job-7")) | {"colour": "red"}),
    "times as text": json.dumps(vars(Holder.here("job-7")) | {"seen": "today"}),
    "a list": "[]",
    "half": '{"host": "x"',
    "empty": "",
}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=list(UNREADABLE))
@pytest.mark.parametrize("part", [(0, 1), (1, 4)])
def test_a_lock_that_cannot_be_read_is_somebodys_until_it_is_old(
    url: str, content: str, part: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = Corpus(url)
    corpus.publish("lock/000000.json", content.encode())
    said = r"is being written by a run whose lock can't be read, as of another version, last written \d s ago; .* --force_unlock"
    with pytest.raises(UsageError, match=said), RunLock(corpus, part=part):
        pass
    assert corpus.names("lock") == ["000000.json"] and len(holders(corpus)) == 1
    with RunLock(corpus, part=part, force=True):
        pass
    corpus.publish("lock/000000.json", content.encode())
    monkeypatch.setattr("hybridiff.corpus.holder.STALE_S", -1.0)
    with RunLock(corpus, part=part):
        pass


@pytest.mark.parametrize("changed", [{"seen": "today"}, {"seen": None}, {"since": [1]}, {"pid": "7"}, {"restart": None}])
def test_a_lock_with_values_of_other_types_is_one_that_cannot_be_read(url: str, changed: dict[str, Any]) -> None:
    corpus = Corpus(url)
    put(corpus, machine="elsewhere", **changed)
    with pytest.raises(UsageError, match="a run whose lock can't be read"), RunLock(corpus, "job-7", restart=1):
        pass


def test_storage_that_fails_while_a_lock_is_taken_leaves_none(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Corpus) -> list[str]:
        raise TimeoutError("no answer")

    corpus = Corpus(url)
    monkeypatch.setattr("hybridiff.corpus.lock.at_work", fail)
    with pytest.raises(TimeoutError, match="no answer"), RunLock(corpus):
        pass
    assert corpus.names("lock") == []


def test_a_sign_of_life_does_not_begin_an_output_anew_that_was_removed(tmp_path: Path) -> None:
    corpus = Corpus(str(tmp_path / "corpus"))
    with RunLock(corpus) as lock:
        corpus.start_run(RunRecord({}, {}))
        shutil.rmtree(corpus.root)
        with pytest.raises(FileNotFoundError, match="was removed during the run"):
            lock.beat()
    assert list(tmp_path.iterdir()) == []


def test_of_two_that_take_over_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus(str(tmp_path))
    put(corpus, started=1)
    slow = RunLock(corpus)
    generations = slow._generations()
    with RunLock(corpus):
        monkeypatch.setattr(slow, "_generations", lambda: generations)  # what it saw before the other took over
        put(corpus, started=1)
        with pytest.raises(UsageError, match="is being written by process"), slow:
            pass


def test_signs_of_life_are_given(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybridiff.corpus.lock.BEAT_S", 0.01)
    corpus = Corpus(url)
    with RunLock(corpus):
        first = json.loads(corpus.read("lock/000000.json"))
        deadline = time.monotonic() + 10
        while json.loads(corpus.read("lock/000000.json"))["seen"] <= first["seen"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_requeued_run_of_the_same_batch_job_takes_over_and_no_other_does(url: str) -> None:
    corpus = Corpus(url)
    put(corpus, machine="elsewhere", restart=1)  # of job-7, on a node that has failed
    for job, restart in (("job-8", 2), ("job-7", 1), (None, 2)):
        with pytest.raises(UsageError, match="is being written by"), RunLock(corpus, job, restart=restart):
            pass
    with RunLock(corpus, "job-7", restart=2):
        assert corpus.names("lock") == ["000001.json"]


def test_a_job_that_has_ended_holds_nothing_whatever_it_left(url: str) -> None:
    corpus, asked = Corpus(url), []

    def is_over(holder: Holder) -> bool:
        asked.append((holder.job, holder.cluster))
        return holder.job == "job-7"

    with RunLock(corpus, "job-8", is_over=is_over):
        assert asked == []
    put(corpus, machine="elsewhere", job="job-6", cluster="big")
    with pytest.raises(UsageError, match="is being written by"), RunLock(corpus, "job-8", is_over=is_over):
        pass
    put(corpus, machine="elsewhere", cluster="big")
    with RunLock(corpus, "job-8", cluster="small", is_over=is_over):
        assert json.loads(corpus.read("lock/000001.json"))["cluster"] == "small"
    assert asked == [("job-6", "big"), ("job-7", "big")]


def test_jobs_that_share_a_corpus_hold_a_part_each(url: str) -> None:
    corpus = Corpus(url)
    first, second, third = (RunLock(corpus, part=part) for part in ((0, 2), (1, 2), (1, 2)))
    with first, second, pytest.raises(UsageError, match="is being written by"), third:
        pass


@pytest.mark.parametrize(
    ("held", "asked", "allowed"),
    [
        ((0, 8), (1, 8), True),
        ((0, 8), (0, 8), False),
        ((0, 8), (0, 4), False),
        ((0, 8), (3, 4), False),
        ((5, 8), (0, 1), False),
        ((0, 1), (5, 8), False),
    ],
)
def test_parts_are_held_side_by_side_only_if_all_count_the_same(
    url: str, held: tuple[int, int], asked: tuple[int, int], allowed: bool
) -> None:
    corpus = Corpus(url)
    with RunLock(corpus, "job-7", part=held):
        if allowed:
            with RunLock(corpus, part=asked):
                pass
        else:
            with pytest.raises(UsageError, match=r"is being written by process .* of job job-7"), RunLock(corpus, part=asked):
                pass
        with RunLock(corpus, part=asked, force=True):
            pass
    with RunLock(corpus, part=asked):
        pass


def test_runs_with_claims_are_refused_while_a_part_is_held(url: str) -> None:
    corpus = Corpus(url)
    with RunLock(corpus, "job-7", part=(2, 4)):
        with pytest.raises(UsageError, match="of job job-7"):
            RunLock(corpus).share()
        assert [holder.job for holder in holders(corpus)] == ["job-7"]
    RunLock(corpus).share()
    assert holders(corpus) == []


def test_parts_that_are_taken_at_the_same_time_both_give_way(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus(url)
    late = RunLock(corpus, "job-8", part=(0, 4))
    monkeypatch.setattr(late, "check", lambda alone: [])  # it looked before the other came
    with RunLock(corpus, "job-7", part=(0, 8)), pytest.raises(UsageError, match="of job job-7"), late:
        pass
    assert corpus.names("lock-0-of-4") == []
