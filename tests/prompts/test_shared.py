"""Large tables that ranks and jobs share: made once, whatever becomes of who makes them."""

import threading
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import fsspec
import pytest

from hybridiff.config import DataConfig, SamplingConfig
from hybridiff.corpus import Corpus
from hybridiff.errors import StorageError, UsageError
from hybridiff.prompts import shared
from hybridiff.prompts.normalise import Request
from hybridiff.prompts.plan import Plan, make_plan
from hybridiff.prompts.shared import SharedTable, identity
from hybridiff.prompts.sources import find_sources
from hybridiff.storage.lease import Leases
from tests.prompts.planning import DISK, MEMORY, in_pieces, samples_of


class CountingCorpus(Corpus):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.opened: list[str] = []

    def publishing(self, name: str, sweep: bool) -> AbstractContextManager[Any]:
        self.opened.append(name)
        return super().publishing(name, sweep)


def test_remote_tables_and_folders(tables: list[Path]) -> None:
    root = f"memory://shared-{uuid.uuid4().hex}"
    for path in tables[:6]:
        with fsspec.open(f"{root}/{path.name}", "wb") as file:
            file.write(path.read_bytes())
    data = DataConfig([f"{root}/{path.name}" for path in tables[:6]])
    corpus = Corpus(f"{root}/corpus")
    plans = [make_plan(data, SamplingConfig(), 3, corpus, "lead", DISK) for _ in range(2)]
    assert len(corpus.names("tables")) == 1 and corpus.names("leases") == []
    held = make_plan(data, SamplingConfig(), 3, held_bytes=MEMORY)
    assert [samples_of(plan) for plan in plans] == [samples_of(held)] * 2


def test_one_rank_makes_it_and_the_others_and_later_runs_read(tmp_path: Path, tables: list[Path]) -> None:
    corpus = CountingCorpus(str(tmp_path / "out"))
    data = DataConfig([str(path) for path in tables[:6]])
    plans: dict[str, Plan] = {}

    def follow() -> None:
        plans["follow"] = make_plan(data, SamplingConfig(), 3, corpus, "follow", DISK)

    follower = threading.Thread(target=follow)
    follower.start()
    plans["lead"] = make_plan(data, SamplingConfig(), 3, corpus, "lead", DISK)
    follower.join()
    plans["again"] = make_plan(data, SamplingConfig(), 3, corpus, "lead", DISK)
    plans["dry"] = make_plan(data, SamplingConfig(), 3, corpus, "alone", DISK)
    assert len(corpus.opened) == 1 and [path.suffix for path in (tmp_path / "out/tables").iterdir()] == [".parquet"]
    held = make_plan(data, SamplingConfig(), 3, held_bytes=MEMORY)
    for plan in plans.values():
        assert samples_of(plan) == samples_of(held)
        assert (plan.content, plan.summary) == (held.content, held.summary) and plan.user_schema.equals(held.user_schema)


def test_what_is_alone_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("p\n" * 5)
    plan = make_plan(DataConfig(str(tmp_path / "a.txt")), SamplingConfig(), 3, Corpus(str(tmp_path / "out")), "alone", DISK)
    assert len(samples_of(plan)) == 5 and not (tmp_path / "out").exists()


def shared_table(tmp_path: Path, lease_s: float = 30.0, name: str = "a.txt") -> SharedTable:
    """What another process would have of the same table."""
    data = DataConfig(str(tmp_path / name), lease_s=lease_s)
    request = Request(find_sources(data.sources), data, 1)
    return SharedTable(Corpus(str(tmp_path / "out")), str(identity(request, 3)), request, 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("p\nq\n")
    return tmp_path


def written(tmp_path: Path) -> list[str]:
    return sorted(path.suffix for path in (tmp_path / "out").rglob("*") if path.is_file())


def test_a_table_that_is_refused_leaves_nothing_and_its_mistake_reaches_every_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("p\n" * 20)
    (tmp_path / "b.jsonl").write_text('{"prompt": "p"}\n' * 20 + "{")
    in_pieces(monkeypatch, 10)
    messages: list[str] = []

    def work(role: Any) -> None:
        data, corpus = DataConfig([str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")]), Corpus(str(tmp_path / "out"))
        with pytest.raises(UsageError) as refused:
            make_plan(data, SamplingConfig(), 3, corpus, role, DISK)
        messages.append(str(refused.value))

    monkeypatch.setattr(shared, "FIRST_LOOK_S", 1.0)
    threads = [threading.Thread(target=work, args=[role]) for role in ("lead", "follow", "follow")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(messages) == 3 and len(set(messages)) == 1 and "b.jsonl, line 21: is not JSON" in messages[0]
    assert written(tmp_path) == []


def test_a_rank_whose_leader_never_comes_stops_waiting(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "FIRST_LOOK_S", 0.3)
    assert shared_table(folder).wait() is None


def slowly(monkeypatch: pytest.MonkeyPatch, before: Callable[[], None]) -> list[str]:
    """Has each table written after something; the threads that write one."""
    makers: list[str] = []
    real = shared.write_table

    def write(*arguments: Any) -> None:
        makers.append(threading.current_thread().name)
        before()
        real(*arguments)

    monkeypatch.setattr(shared, "write_table", write)
    return makers


@pytest.mark.parametrize("dead", [False, True])
def test_of_jobs_that_start_together_one_makes_it(folder: Path, monkeypatch: pytest.MonkeyPatch, dead: bool) -> None:
    if dead:
        killed = shared_table(folder)
        assert Leases(killed._folder, "leases", 1.0).acquire(killed._lease), "as one that is killed"
        part = folder / "out" / f"{Path(killed._name).parent}/.{Path(killed._name).name}.0123456789abcdef.tmp"
        part.parent.mkdir()
        part.write_bytes(b"PAR1")
    makers = slowly(monkeypatch, lambda: time.sleep(0.5))
    together, contents = threading.Barrier(4), []

    def work() -> None:
        table = shared_table(folder)
        together.wait()
        contents.append(table.make().content)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(contents) == 4 and len(set(contents)) == 1 and len(makers) == 1
    assert written(folder) == [".parquet"], "what the dead one left is swept away"


def test_others_wait_for_a_maker_longer_than_its_lease(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = threading.Event()

    def slow() -> None:
        begun.set()
        time.sleep(3.5)

    makers = slowly(monkeypatch, slow)
    leader = threading.Thread(target=shared_table(folder, 1.0).make, name="leader")
    leader.start()
    assert begun.wait(10)
    found: list[Any] = []
    others = [threading.Thread(target=lambda: found.append(shared_table(folder, 1.0).wait()))]
    others.append(threading.Thread(target=lambda: found.append(shared_table(folder, 1.0).make())))
    for other in others:
        other.start()
    for thread in [leader, *others]:
        thread.join()
    assert makers == ["leader"] and len(found) == 2 and None not in found


def test_a_writer_that_lost_its_lease_uses_the_new_owners_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stalled, other = shared_table(folder), shared_table(folder)

    def lose() -> None:
        monkeypatch.undo()
        lease = folder / f"out/leases/{other._lease}.0.json"
        lease.with_name(f"{other._lease}.1.json").write_bytes(lease.read_bytes().replace(b'"id": "', b'"id": "other-'))
        with other._folder.publishing(other._name, sweep=False) as sink:
            shared.write_table(other._request, sink, 3)
        (folder / f"out/leases/{other._lease}.1.json").unlink()
        lease.unlink()

    slowly(monkeypatch, lose)
    assert stalled.make().content == other.load().content  # type: ignore[union-attr]
    stalled._discard()
    assert written(folder) == [".parquet"], "it is not its own to remove"


def test_a_table_that_was_removed_is_written_again(folder: Path) -> None:
    content = shared_table(folder).make().content
    (path,) = (folder / "out/tables").iterdir()
    path.unlink()
    assert shared_table(folder).load() is None
    assert shared_table(folder).make().content == content and path.exists()


def test_a_table_is_discarded_by_the_process_that_made_it(folder: Path) -> None:
    made = shared_table(folder).make()
    shared_table(folder).make().discard()
    assert written(folder) == [".parquet"]
    made.discard()
    assert written(folder) == []


def test_storage_without_create_if_absent_takes_one_run_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Corpus, "creates_if_absent", False)
    table = shared_table(folder)
    assert table.make().count == 2 and table.wait() is not None
    assert written(folder) == [".parquet"]


def test_a_place_that_cannot_be_written_is_refused(folder: Path) -> None:
    (folder / "out").write_text("a file")
    with pytest.raises(UsageError, match=r"out: the normalised prompt table can't be written there: "):
        make_plan(DataConfig([str(folder / "a.txt")]), SamplingConfig(), 3, Corpus(str(folder / "out")), "lead", DISK)


def test_a_full_disk_is_storage_trouble(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    slowly(monkeypatch, full)
    with pytest.raises(StorageError, match=r"can't be written there: .*No space left on device"):
        shared_table(folder).make()
    assert written(folder) == []


def test_the_name_of_a_table_changes_with_all_that_decides_what_is_read(folder: Path) -> None:
    def name(images: int = 1, shard_rows: int = 3, **options: Any) -> str | None:
        data = DataConfig(str(folder / "a.txt"), **options)
        return identity(Request(find_sources(data.sources), data, images), shard_rows)

    names = [name(), name(images=2), name(shard_rows=4), name(prompt_column="x"), name(key_column="k"), name(delimiter=";")]
    names += [name(encoding="cp1252"), name(empty_prompts="allow"), name(max_text=5), name(max_rows=5), name(max_expansion=5)]
    (folder / "a.txt").write_text("p\nother\n")
    names.append(name())
    assert len(set(names)) == len(names) and name() == names[-1]
