"""How far a corpus is, told by its markers."""

import os
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from hybridiff.config import UsageError
from hybridiff.sinks.corpus import Corpus
from hybridiff.sinks.names import marker_name, stats_name
from hybridiff.sinks.progress import Progress, Seen, rate, read_progress, span
from hybridiff.sinks.record import RunRecord

START = datetime(2026, 1, 1, tzinfo=timezone.utc)


def test_the_rate_is_that_between_the_latest_commits() -> None:
    times = {0: START, 1: START + timedelta(seconds=10), 2: START + timedelta(seconds=20)}
    assert rate(times, {0: 100, 1: 30, 2: 10}) == 2.0  # the first commit's images were made before it
    assert rate({0: START}, {0: 100}) is None
    assert rate({0: START, 1: START}, {0: 1, 1: 1}) is None
    assert rate({}, {}) is None


def test_the_line_says_what_is_done_and_left() -> None:
    assert (
        Progress(10, 4, 1000, 400, 3, 2.0, 1.0).line()
        == "4 of 10 shards, 400 of 1000 images, 3 failed rows, 2 images/s, 5 min left"
    )
    assert Progress(2, 2, 9, 9, 0, None, None).line() == "2 of 2 shards, 9 of 9 images, 0 failed rows, rate unknown, whole"
    assert Progress(2, 1, 9, 5, 0, None, None).line().endswith("rate unknown, time left unknown")


def test_times_are_said_as_people_say_them() -> None:
    assert [span(s) for s in (4.4, 59.4, 60, 3540, 12000)] == ["4 s", "59 s", "1 min", "59 min", "3 h 20 min"]


def test_a_corpus_tells_how_far_it_is(tmp_path: Path) -> None:
    corpus = Corpus(str(tmp_path / "corpus"))
    with pytest.raises(UsageError, match="no job has started on it yet"):
        read_progress(corpus)
    corpus.start_run(RunRecord({}, {"rows": 10, "shards": 3, "content": "c"}))
    assert read_progress(corpus) == Progress(3, 0, 10, 0, 0, None, None)
    for index, failed in ((0, 1), (2, 0)):
        corpus.publish(marker_name(index), f'{{"rows": 4, "ok": {4 - failed}, "failed": {failed}}}'.encode())
    corpus.publish(stats_name(0), b'{"group_s": 8.0}')
    progress = read_progress(corpus)
    assert (progress.done, progress.rows_done, progress.failed, progress.group_rate) == (2, 8, 1, 0.5)
    assert set(corpus.commit_times()) == {0, 2}


def test_a_second_look_reads_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, seen = Corpus(str(tmp_path / "corpus")), Seen()
    corpus.start_run(RunRecord({}, {"rows": 12, "shards": 3, "content": "c"}))

    def commit(index: int, failed: int) -> None:
        corpus.publish(marker_name(index), f'{{"rows": 4, "ok": {4 - failed}, "failed": {failed}}}'.encode())

    read: list[int] = []
    marker = corpus.read_marker
    monkeypatch.setattr(corpus, "read_marker", lambda index: read.append(index) or marker(index))
    commit(0, 1)
    assert read_progress(corpus, seen).failed == 1
    commit(2, 2)
    assert read_progress(corpus, seen).failed == 3
    assert read_progress(corpus, seen) == read_progress(corpus)
    assert read == [0, 2, 0, 2]  # the last two for the look that knew nothing
    commit(0, 0)  # its failed rows were drawn again
    os.utime(tmp_path / "corpus" / marker_name(0), (0, 0))
    assert (read_progress(corpus, seen).failed, read[4:]) == (2, [0])
