"""Copies of large tables: made once for all ranks and later runs, whatever becomes of who makes them."""

import threading
import time
import uuid
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hybridiff.prompts.record import identity
from hybridiff.prompts.shared_copies import SharedCopies
from hybridiff.prompts.signs import MakerSigns
from hybridiff.prompts.tables import find_sources

from hybridiff.config import DataConfig, SamplingConfig
from hybridiff.corpus import Corpus
from hybridiff.errors import UsageError
from hybridiff.prompts import making, shared_copies
from hybridiff.prompts.plan import Plan, make_plan
from hybridiff.prompts.rows import Request
from tests.prompts.planning import STREAMED, in_pieces, samples_of


def test_remote_tables_and_stores(tables: list[Path]) -> None:
    root = f"memory://streamed-{uuid.uuid4().hex}"
    for path in tables[:6]:
        with fsspec.open(f"{root}/{path.name}", "wb") as file:
            file.write(path.read_bytes())
    data = DataConfig([f"{root}/{path.name}" for path in tables[:6]])
    corpus = Corpus(f"{root}/corpus")
    plans = [make_plan(data, SamplingConfig(), 3, corpus, "lead", STREAMED) for _ in range(2)]
    assert len(corpus.names("tables")) == 6
    held = make_plan(data, SamplingConfig(), 3, held_bytes=1 << 30)
    assert [samples_of(plan) for plan in plans] == [samples_of(held)] * 2


class CountingCorpus(Corpus):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.opened: list[str] = []

    def publishing(self, name: str, sweep: bool) -> AbstractContextManager[Any]:
        self.opened.append(name)
        return super().publishing(name, sweep)


def test_one_rank_copies_and_the_others_and_later_runs_read(tmp_path: Path, tables: list[Path]) -> None:
    corpus = CountingCorpus(str(tmp_path / "out"))
    data = DataConfig([str(path) for path in tables[:6]])
    plans: dict[str, Plan] = {}

    def follow() -> None:
        plans["follow"] = make_plan(data, SamplingConfig(), 3, corpus, "follow", STREAMED)

    follower = threading.Thread(target=follow)
    follower.start()
    plans["lead"] = make_plan(data, SamplingConfig(), 3, corpus, "lead", STREAMED)
    follower.join()
    plans["again"] = make_plan(data, SamplingConfig(), 3, corpus, "lead", STREAMED)
    plans["dry"] = make_plan(data, SamplingConfig(), 3, corpus, "alone", STREAMED)
    assert len(corpus.opened) == 5
    assert sorted(path.suffix for path in (tmp_path / "out/tables").iterdir()) == [".json"] + [".parquet"] * 5
    held = make_plan(data, SamplingConfig(), 3, held_bytes=1 << 30)
    for plan in plans.values():
        assert samples_of(plan) == samples_of(held)
        assert plan.content == plans["lead"].content and plan.user_schema.equals(held.user_schema)


def copies_of(tmp_path: Path, path: Path, patience_s: float = 0.1) -> tuple[Request, SharedCopies]:
    request = Request(find_sources([str(path)]), DataConfig([str(path)]), 1)
    store = Corpus(str(tmp_path / "out"))
    return request, SharedCopies(store, str(identity(request)), beat_s=patience_s / 10, patience_s=patience_s)


def leave_a_sign(place: SharedCopies) -> None:
    """As a leader that is killed."""
    sign = Path(place.path(0).removesuffix("-0.parquet") + ".0.making")
    sign.parent.mkdir(parents=True)
    sign.write_text("1 0123")


def test_nothing_of_a_copy_is_seen_before_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "p"}\n' * 20)
    (tmp_path / "b.jsonl").write_text('{"prompt": "p"}\n' * 20 + "{")
    in_pieces(monkeypatch, 10)
    request, place = copies_of(tmp_path, tmp_path / "?.jsonl")
    with pytest.raises(UsageError, match=r"line 21: is not JSON"):
        place.make(request)
    assert list((tmp_path / "out/tables").iterdir()) == []
    assert place.load(request) is None


def test_a_rank_whose_leader_died_stops_waiting(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("p")
    request, place = copies_of(tmp_path, tmp_path / "a.txt")
    leave_a_sign(place)
    assert place.wait(request) is None


def test_ranks_and_other_jobs_wait_for_a_leader_that_is_long_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("p")
    request, place = copies_of(tmp_path, tmp_path / "a.txt")
    begun, made = threading.Event(), []

    def slow(*arguments: Any) -> Any:
        begun.set()
        made.append(threading.current_thread().name)
        time.sleep(2.5)  # more than twice what is waited for a sign
        return making.make_ready(*arguments)

    monkeypatch.setattr(shared_copies, "make_ready", slow)
    leader = threading.Thread(target=place.make, args=[request], name="leader")
    leader.start()
    assert begun.wait(10)
    contents: list[str] = []
    others = [
        threading.Thread(target=lambda: contents.append(copies_of(tmp_path, tmp_path / "a.txt", 1.5)[1].wait(request).content)),
        threading.Thread(target=lambda: contents.append(copies_of(tmp_path, tmp_path / "a.txt", 1.5)[1].make(request).content)),
    ]
    for other in others:
        other.start()
    for thread in [leader, *others]:
        thread.join()
    assert made == ["leader"] and len(contents) == 2
    assert sorted(path.suffix for path in (tmp_path / "out/tables").iterdir()) == [".json", ".parquet"]


def test_a_store_that_fails_for_a_beat_does_not_end_the_making(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signs = MakerSigns(Corpus(str(tmp_path / "out")), "tables/a", beat_s=0.01)
    published: list[str] = []
    publish = Corpus.publish

    def sometimes(corpus: Corpus, name: str, data: bytes, exclusive: bool = False) -> None:
        published.append(name)
        if 1 < len(published) <= 3:
            raise OSError("gone for a while")
        publish(corpus, name, data, exclusive)

    monkeypatch.setattr(Corpus, "publish", sometimes)
    assert signs.take(None)
    with signs.alive():
        deadline = time.monotonic() + 10
        while len(published) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(published) >= 5
    assert list((tmp_path / "out/tables").iterdir()) == []


def test_what_a_killed_leader_left_is_swept_away(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("p")
    request, place = copies_of(tmp_path, tmp_path / "a.txt")
    leave_a_sign(place)
    copy = Path(place.path(0))
    left = copy.with_name(f".{copy.name}.0123456789abcdef.tmp")
    left.write_bytes(b"PAR1")
    place.make(request)
    assert sorted(path.suffix for path in copy.parent.iterdir()) == [".json", ".parquet"]


def made_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int) -> tuple[list[str], list[str]]:
    """Contents that jobs get which start at the same moment, and who of them made something."""
    together, makers, contents = threading.Barrier(jobs), [], []

    def slow(*arguments: Any) -> Any:
        makers.append(threading.current_thread().name)
        time.sleep(0.3)
        return making.make_ready(*arguments)

    def work() -> None:
        request, place = copies_of(tmp_path, tmp_path / "a.txt", 2.0)
        together.wait()
        contents.append(place.make(request).content)

    monkeypatch.setattr(shared_copies, "make_ready", slow)
    threads = [threading.Thread(target=work) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return contents, makers


@pytest.mark.parametrize("after_a_death", [False, True])
def test_of_jobs_that_start_together_one_makes_the_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after_a_death: bool
) -> None:
    (tmp_path / "a.txt").write_text("p")
    if after_a_death:
        leave_a_sign(copies_of(tmp_path, tmp_path / "a.txt")[1])
    contents, makers = made_together(tmp_path, monkeypatch, 4)
    assert len(contents) == 4 and len(set(contents)) == 1 and len(makers) == 1
    assert sorted(path.suffix for path in (tmp_path / "out/tables").iterdir()) == [".json", ".parquet"]


def test_a_job_does_not_remove_what_another_is_writing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("p")
    request, place = copies_of(tmp_path, tmp_path / "a.txt")
    Path(place.path(0)).parent.mkdir(parents=True)
    begun = Path(place.path(0)).with_name(f".{Path(place.path(0)).name}.0123456789abcdef.tmp")
    begun.write_bytes(b"PAR1")
    place.make(request)
    assert begun.exists()


@pytest.mark.parametrize("fails", [False, True])
def test_a_maker_that_was_silent_and_taken_over_from_uses_what_the_other_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    (tmp_path / "a.txt").write_text("p")
    request, place = copies_of(tmp_path, tmp_path / "a.txt", 5.0)
    _, heir = copies_of(tmp_path, tmp_path / "a.txt", 5.0)
    made: list[Any] = []

    def slow(*arguments: Any) -> Any:
        monkeypatch.undo()
        assert heir._signs.take(heir._signs.latest())
        made.append(heir._make(request))
        if fails:
            raise UsageError("what it was writing is gone")
        return making.make_ready(*arguments)

    monkeypatch.setattr(shared_copies, "make_ready", slow)
    assert place.make(request) == made[0]
    assert sorted(path.suffix for path in (tmp_path / "out/tables").iterdir()) == [".json", ".parquet"]


def test_a_copy_that_was_removed_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("p")
    request, place = copies_of(tmp_path, tmp_path / "a.txt")
    content = place.make(request).content
    (copy,) = (tmp_path / "out/tables").glob("*.parquet")
    copy.unlink()
    assert place.load(request) is None
    assert place.make(request).content == content and copy.exists()


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("p")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UsageError, match=r"out: .* can't be written there: "):
        make_plan(DataConfig([str(tmp_path / "a.txt")]), SamplingConfig(), 3, Corpus(str(tmp_path / "out")), "lead", STREAMED)
