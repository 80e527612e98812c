"""Progress of a corpus, by its markers."""

import json
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.layout import marker_name, metadata_name, stats_name, tar_name
from hybridiff.corpus.progress import Progress, Seen, ShardTiming, rate, read_progress, span
from hybridiff.corpus.record import RunRecord, sealed
from hybridiff.errors import UsageError

START = datetime(2026, 1, 1, tzinfo=UTC)


def timings(leader: str, *at: float, rows: int = 100, seconds: float = 10.0) -> list[ShardTiming]:
    """Shards of one group, by the seconds after START at which they were committed."""
    return [ShardTiming(START + timedelta(seconds=moment), rows, seconds, leader) for moment in at]


def marker(index: int, rows: int, failed: int) -> bytes:
    """A shard's, as a run writes it."""
    files = {name(index): {"bytes": 1, "sha256": "0" * 64} for name in (tar_name, metadata_name)}
    counts = {"rows": rows, "ok": rows - failed, "failed": failed}
    return json.dumps({"shard": index, "fingerprint": "0" * 64, "files": files, **counts}).encode()


def test_the_rate_is_that_of_all_groups_together() -> None:
    assert rate([]) is None
    assert rate([ShardTiming(START, 100, 0.0, "")]) is None
    assert rate(timings("a", 10)) == 10.0
    assert (
        rate(timings("a", 10, 20) + timings("b", 14, rows=20, seconds=4.0) + timings("b", 20, rows=20, seconds=6.0)) == 10.0 + 4.0
    )


@pytest.mark.parametrize("waves", [1, 2, 5])
def test_groups_in_lock_step_count_once_each(waves: int) -> None:
    moments = [(f"g{group}", 10.0 * wave + group / 1000) for wave in range(1, waves + 1) for group in range(8)]
    assert rate([shard for leader, moment in moments for shard in timings(leader, moment)]) == 80.0


def test_groups_that_have_ended_or_were_requeued_count_no_more() -> None:
    assert rate(timings("ended", 10, 20) + timings("a", 20, 30, 39)) == 20.0  # may still be generating
    assert rate(timings("ended", 10, 20) + timings("a", 20, 30, 40)) == 10.0
    requeued = timings("run 1", 10, 20) + timings("run 2", 60, 70)
    assert rate(requeued) == 10.0
    slow = timings("slow", 100, rows=100, seconds=100.0)
    assert rate(slow + timings("a", 260, 270, 280)) == 11.0


def test_all_groups_are_looked_at_however_many(tmp_path: Path) -> None:
    corpus, shards = Corpus(str(tmp_path / "corpus")), 300
    corpus.start_run(RunRecord({}, {"rows": 900, "shards": shards, "content": "c"}))
    for index in range(shards):  # a group each, but for the first hundred, of one that has ended
        leader = "ended" if index < 100 else index
        corpus.publish(stats_name(index), f'{{"group_s": 5.0, "group": {{"leader": "{leader}"}}}}'.encode())
        corpus.publish(marker_name(index), marker(index, 2, 0))
        moment = 1000 if index < 100 else 2000 + index / 100
        os.utime(tmp_path / "corpus" / marker_name(index), (moment, moment))
    assert read_progress(corpus).images_per_s == pytest.approx(200 * 2 / 5.0)


def test_the_line_says_what_is_done_and_left() -> None:
    assert (
        Progress(10, 4, 1000, 400, 3, 2.0, 1.0).line()
        == "4 of 10 shards, 400 of 1000 images, 3 failed rows, 2 images/s, 5 min left"
    )
    assert Progress(2, 2, 9, 9, 0, None, None).line() == "2 of 2 shards, 9 of 9 images, 0 failed rows, rate unknown, whole"
    assert Progress(2, 1, 9, 5, 0, None, None).line().endswith("rate unknown, time left unknown")


def test_times_are_said_as_people_say_them() -> None:
    assert [span(s) for s in (4.4, 59.4, 60, 3540, 12000)] == ["4 s", "59 s", "1 min", "59 min", "3 h 20 min"]


def test_progress_of_a_corpus(tmp_path: Path) -> None:
    corpus = Corpus(str(tmp_path / "corpus"))
    with pytest.raises(UsageError, match="no job has started on it yet"):
        read_progress(corpus)
    corpus.start_run(RunRecord({}, {"rows": 10, "shards": 3, "content": "c"}))
    assert read_progress(corpus) == Progress(3, 0, 10, 0, 0, None, None)
    for index, failed in ((0, 1), (2, 0)):
        corpus.publish(marker_name(index), marker(index, 4, failed))
    corpus.publish(stats_name(0), b'{"group_s": 8.0}')
    progress = read_progress(corpus)
    assert (progress.done, progress.rows_done, progress.failed, progress.group_rate) == (2, 8, 1, 0.5)
    assert set(corpus.commit_times()) == {0, 2}


def test_a_second_look_reads_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, seen = Corpus(str(tmp_path / "corpus")), Seen()
    corpus.start_run(RunRecord({}, {"rows": 12, "shards": 3, "content": "c"}))

    def commit(index: int, failed: int) -> None:
        corpus.publish(marker_name(index), marker(index, 4, failed))

    read: list[int] = []
    read_marker = corpus.read_marker
    monkeypatch.setattr(corpus, "read_marker", lambda index: read.append(index) or read_marker(index))
    commit(0, 1)
    assert read_progress(corpus, seen).failed == 1
    commit(2, 2)
    assert read_progress(corpus, seen).failed == 3
    assert read_progress(corpus, seen) == read_progress(corpus)
    assert read == [0, 2, 0, 2]  # the last two for the look that knew nothing
    commit(0, 0)  # its failed rows were regenerated
    os.utime(tmp_path / "corpus" / marker_name(0), (0, 0))
    assert (read_progress(corpus, seen).failed, read[4:]) == (2, [0])


def made(tmp_path: Path) -> Corpus:
    """A corpus of four shards of four rows, generated by one group in 8 s each."""
    corpus = Corpus(str(tmp_path / "corpus"))
    corpus.start_run(RunRecord({}, {"rows": 16, "shards": 4, "content": "c"}))
    for index in range(4):
        corpus.publish(stats_name(index), b'{"group_s": 8.0, "group": {"leader": "a"}}')
        corpus.publish(marker_name(index), marker(index, 4, 1))
    return corpus


@pytest.mark.parametrize("damage", [b"", b"garbage", b"\xff\xfe", b"null", b"[]", b"{}", marker(1, 4, 1)[:-20], marker(2, 4, 1)])
def test_a_damaged_marker_is_named_and_its_shard_is_not_done(tmp_path: Path, damage: bytes) -> None:
    corpus, seen = made(tmp_path), Seen()
    whole = read_progress(corpus, seen)
    assert whole == Progress(4, 4, 16, 16, 4, 0.5, 0.5) and whole.whole and not whole.stuck
    corpus.publish(marker_name(1), damage)
    os.utime(tmp_path / "corpus" / marker_name(1), (0, 0))
    for progress in (read_progress(corpus), read_progress(corpus, seen), read_progress(corpus, seen)):
        assert progress == Progress(4, 3, 16, 12, 3, 0.5, 0.5, (marker_name(1),))
        assert not progress.whole and progress.stuck
        assert progress.line() == (
            "3 of 4 shards, 12 of 16 images, 3 failed rows, 0.5 images/s, 8 s left; damaged: commits/00001.json: run "
            "hybridiff verify --repair, then hybridiff generate without --retry_failed"
        )
    corpus.publish(marker_name(1), marker(1, 4, 1))
    assert read_progress(corpus, seen) == whole, "repaired and regenerated"


def test_of_many_damaged_markers_one_is_named(tmp_path: Path) -> None:
    corpus = made(tmp_path)
    corpus.fs.rm_file(corpus.path(marker_name(3)))
    for index in (1, 2):
        corpus.publish(marker_name(index), b"garbage")
    progress = read_progress(corpus)
    assert not progress.stuck, "shard 3 can be made"
    assert "; damaged: commits/00001.json, and 1 more: run hybridiff verify --repair" in progress.line()


@pytest.mark.parametrize(
    "damage",
    [
        b"garbage",
        b"\xff",
        b"[]",
        b"null",
        b'{"group_s": "8", "group": {"leader": "a"}}',
        b'{"group_s": NaN, "group": {"leader": "a"}}',
        b'{"group_s": -8.0, "group": 7}',
        b'{"group_s": 1e999, "group": null}',
    ],
)
def test_damaged_timings_say_nothing_of_the_rate(tmp_path: Path, damage: bytes) -> None:
    corpus = made(tmp_path)
    corpus.publish(stats_name(1), damage)
    corpus.fs.rm_file(corpus.path(stats_name(2)))
    assert read_progress(corpus) == Progress(4, 4, 16, 16, 4, 0.5, 0.5)


def test_timings_of_an_unknown_group_count_as_those_of_one(tmp_path: Path) -> None:
    corpus = made(tmp_path)
    for index in range(4):
        corpus.publish(stats_name(index), b'{"group_s": 8.0, "group": []}')
    assert read_progress(corpus) == Progress(4, 4, 16, 16, 4, 0.5, 0.5)


def test_a_shard_whose_failed_rows_are_being_regenerated_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = made(tmp_path)
    times = corpus.commit_times()
    shutil.rmtree(tmp_path / "corpus" / "commits")
    monkeypatch.setattr(corpus, "commit_times", lambda: times)
    assert read_progress(corpus) == Progress(4, 0, 16, 0, 0, None, None)


@pytest.mark.parametrize("plan", [{}, {"rows": 1}, {"rows": "16", "shards": 4}])
def test_a_damaged_run_record_is_reported(tmp_path: Path, plan: dict[str, object]) -> None:
    corpus = made(tmp_path)
    corpus.publish("run.json", json.dumps(sealed(RunRecord({}, plan).document())).encode())
    with pytest.raises(UsageError, match=r"run\.json is no run record; its plan must hold numbers of rows and shards"):
        read_progress(corpus)


def test_storage_that_fails_is_not_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> bytes:
        raise TimeoutError("no answer")

    corpus, seen = made(tmp_path), Seen()
    read = corpus.read
    monkeypatch.setattr(corpus, "read", lambda name: fail(name) if name == stats_name(1) else read(name))
    with pytest.raises(TimeoutError, match="no answer"):
        read_progress(corpus, seen)
    monkeypatch.undo()
    assert read_progress(corpus, seen) == Progress(4, 4, 16, 16, 4, 0.5, 0.5)
