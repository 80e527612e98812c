"""``hybridiff status``: how far a dataset is, and who is generating it."""

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hybridiff import cli
from hybridiff.cli import status
from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.layout import metadata_name, tar_name
from hybridiff.corpus.record import RunRecord
from hybridiff.storage.lease import Leases
from hybridiff.storage.owner import Owner

SHARDS, ROWS = 5, 10


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    """A dataset of five shards of two rows, begun, without SLURM."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(status, "LOOK_S", 0.01)
    found = Corpus(str(tmp_path / "corpus"))
    found.start_run(RunRecord({}, {"rows": ROWS, "shards": SHARDS, "content": "c"}))
    return found


def commit(corpus: Corpus, index: int, failed: int = 0) -> None:
    files = {name(index): {"bytes": 1, "sha256": "0" * 64} for name in (tar_name, metadata_name)}
    counts = {"rows": 2, "ok": 2 - failed, "failed": failed}
    marker = {"shard": index, "fingerprint": "0" * 64, "files": files, **counts}
    corpus.publish(f"stats/{index:05d}.json", b'{"group_s": 4.0, "group": {"leader": "a"}}')
    corpus.publish(f"commits/{index:05d}.json", json.dumps(marker).encode())


def leases(corpus: Corpus, host: str, job: str | None, *names: str) -> Leases:
    """Leases of a live owner on another machine."""
    found = Leases(corpus, "leases", 60.0, owner=Owner(f"{host}-1", host, host, 7, None, job))
    assert all(found.acquire(name) for name in names)
    return found


def squeue(folder: Path, *lines: str) -> None:
    """A SLURM whose queue holds these lines."""
    path = folder / "bin" / "squeue"
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
    path.chmod(0o755)


def run(corpus: Corpus, *options: str) -> int:
    """The exit code of the command."""
    return cli.main(["status", corpus.url, *options])


def document(output: str) -> dict[str, Any]:
    """The last line."""
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def test_it_shows_what_is_done_held_and_missing_and_by_whom(corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    commit(corpus, 0, failed=1)
    one, two = leases(corpus, "node1", "55", "00000", "00001", "00003"), leases(corpus, "pod-2", None, "00002")
    assert run(corpus) == 0
    output = capsys.readouterr().out
    lines = output.splitlines()
    assert lines[:4] == [
        f"corpus:   {corpus.url}",
        "shards:   1 of 5 done, 3 held, 1 missing",
        "images:   2 of 10, 1 failed row",
        "rate:     0.5 images/s, 16 s left",
    ]
    assert lines[4].startswith("held:     00001, 00003 by process 7 of job 55 on node1, since 20")
    assert lines[5].startswith("held:     00002 by process 7 on pod-2, since 20") and len(lines) == 7
    found = document(output)
    owners = found.pop("owners")
    assert found == {
        "url": corpus.url,
        "complete": False,
        "shards": 5,
        "done": 1,
        "held": 3,
        "missing": 1,
        "rows": 10,
        "rows_done": 2,
        "failed": 1,
        "images_per_s": 0.5,
        "seconds_left": 16.0,
        "damaged": [],
    }
    assert [(owner["host"], owner["job"], owner["leases"]) for owner in owners] == [
        ("node1", "55", ["00001", "00003"]),
        ("pod-2", None, ["00002"]),
    ]
    one.release_all()
    two.release_all()
    assert run(corpus) == 0
    assert document(capsys.readouterr().out)["held"] == 0


def test_leases_that_have_expired_hold_nothing(corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    late = Leases(corpus, "leases", 60.0, owner=Owner("x", "node1", "node1", 7, None), clock=lambda: 1000.0)
    assert late.acquire("00001")
    assert run(corpus) == 0
    assert "shards:   0 of 5 done, 0 held, 5 missing\n" in capsys.readouterr().out


def test_a_complete_dataset_ends_the_watch(corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(SHARDS):
        commit(corpus, index)
    for options in ([], ["--watch"]):
        assert run(corpus, *options) == 0
        output = capsys.readouterr().out
        assert document(output)["complete"] is True
    first, _ = output.splitlines()
    assert "5 of 5 shards, 10 of 10 images, 0 failed rows, 0.5 images/s, whole" in first


def test_a_directory_without_a_dataset_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", str(tmp_path / "nothing")]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("status: error: ") and printed.err.count("\n") == 1
    assert not (tmp_path / "nothing").exists()


def test_storage_that_cannot_be_read_ends_in_one_line(
    corpus: Corpus, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Unable to locate credentials")

    monkeypatch.setattr(type(corpus.fs), "ls", refuse)
    assert run(corpus) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    said = f"{corpus.url} can't be read (StorageError: {corpus.path('leases')}: RuntimeError: Unable to locate credentials)"
    assert printed.err == f"status: error: StorageError: {said}\n"


def test_the_watch_ends_when_nobody_works_on_what_is_left(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not while a job of the user's is in the queue, which may write it, or a lease is held."""
    squeue(tmp_path, f"7|any|hybridiff:{corpus.url}")
    held, looks = leases(corpus, "node1", "7", "00001"), iter(range(100))

    def change(_: float) -> None:
        look = next(looks)
        if look == 3:
            squeue(tmp_path, "7|hybridiff|(null)")
        elif look == 6:
            squeue(tmp_path, "7|hybridiff|hybridiff:/elsewhere")
        elif look == 9:
            held.release_all()
        assert look < 20

    monkeypatch.setattr(status, "time", SimpleNamespace(sleep=change, strftime=time.strftime))
    assert run(corpus, "--watch") == 1
    assert next(looks) == 11
    first, second, said, last = capsys.readouterr().out.splitlines()
    assert "0 of 5 shards" in first and first.endswith("; held: 1 shard, by 1 process")
    assert second.endswith("; held: 0 shards, by 0 processes")
    assert said == "nobody works on it any more; the same command again generates what is left"
    assert json.loads(last)["missing"] == 5


def test_the_watch_waits_for_a_run_that_has_not_begun(
    tmp_path: Path, corpus: Corpus, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without SLURM it does not know who may come."""
    later = tmp_path / "later"
    looks = iter(range(10))

    def begin(_: float) -> None:
        if next(looks) == 3:
            os.rename(corpus.url, later)
            for index in range(SHARDS):
                commit(Corpus(str(later)), index)

    monkeypatch.setattr(status, "time", SimpleNamespace(sleep=begin, strftime=time.strftime))
    assert cli.main(["status", str(later), "--watch"]) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert "no job has started on it yet" in first and json.loads(last)["complete"] is True


def test_the_watch_ends_where_only_damaged_shards_are_left(corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(SHARDS):
        commit(corpus, index)
    corpus.publish("commits/00002.json", b"garbage")
    assert run(corpus, "--watch") == 1
    first, last = capsys.readouterr().out.splitlines()
    assert "4 of 5 shards" in first and "damaged: commits/00002.json" in first
    assert json.loads(last)["damaged"] == ["commits/00002.json"]
    assert run(corpus) == 0
    assert "damaged:  commits/00002.json\n" in capsys.readouterr().out
