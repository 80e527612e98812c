"""Storage that does not give what it has: nothing is known of it, and nothing is repaired."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hybridiff.corpus import repair, verify
from hybridiff.corpus.layout import marker_name, metadata_name, tar_name
from tests.corpus.corpora import make_corpus
from tests.storage.faults import put, repeat_keys


def test_what_could_not_be_read_is_not_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = make_corpus(str(tmp_path))
    open_file = type(corpus.fs).open

    def refuse(self: Any, path: str, mode: str = "rb", **options: Any) -> Any:
        if path.endswith(tar_name(1)):
            raise TimeoutError("no answer")
        return open_file(self, path, mode, **options)

    monkeypatch.setattr(type(corpus.fs), "open", refuse)
    report = verify(corpus)
    assert report.problems == ["images/00001.tar: TimeoutError: no answer"] and not report.whole
    assert (report.corrupt, report.unreadable, report.missing, report.damaged) == (0, 1, 0, {})
    assert repair(corpus, report) == [] and corpus.committed() == {0, 1, 2}


class ClientError(Exception):
    """What a storage client raises that has types of its own."""


class InvalidAnswer(ValueError):
    """Likewise, of a type that readers of damaged files raise too."""


@pytest.mark.parametrize("error", [ConnectionError, ClientError, InvalidAnswer])
@pytest.mark.parametrize(
    ("name", "read"),
    [(marker_name(1), 1), *((name, read) for name in (tar_name(1), metadata_name(1)) for read in (1, 2, 3, 4))],
)
def test_storage_that_fails_once_in_the_middle_of_a_file_is_no_damage(
    tmp_path: Path, name: str, read: int, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus(str(tmp_path))
    open_file, reads = type(corpus.fs).open, [0]

    class Failing:
        def __init__(self, handle: Any) -> None:
            self.handle = handle

        def __getattr__(self, attribute: str) -> Any:
            return getattr(self.handle, attribute)

        def __enter__(self) -> "Failing":
            return self

        def __exit__(self, *_: object) -> None:
            self.handle.close()

        def read(self, size: int = -1) -> bytes:
            reads[0] += 1
            if reads[0] == read:
                raise error("reset")
            data: bytes = self.handle.read(size)
            return data

    def opened(self: Any, path: str, mode: str = "rb", **options: Any) -> Any:
        handle = open_file(self, path, mode, **options)
        return Failing(handle) if path.endswith(name) else handle

    monkeypatch.setattr(type(corpus.fs), "open", opened)
    report = verify(corpus)
    assert reads[0] >= read and (report.corrupt, report.unreadable, report.damaged) == (0, 1, {}), report.problems
    assert repair(corpus, report) == [] and corpus.committed() == {0, 1, 2}


@pytest.mark.parametrize("error", [ConnectionError, ClientError])
@pytest.mark.parametrize("time", [1, 2])
def test_storage_that_does_not_open_the_rows_is_no_damage(
    tmp_path: Path, time: int, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus(str(tmp_path))
    open_file, times = type(corpus.fs).open, [0]

    def opened(self: Any, path: str, mode: str = "rb", **options: Any) -> Any:
        times[0] += path.endswith(metadata_name(1))
        if path.endswith(metadata_name(1)) and times[0] == time:
            raise error("no answer")
        return open_file(self, path, mode, **options)

    monkeypatch.setattr(type(corpus.fs), "open", opened)
    report = verify(corpus)
    assert times[0] >= time and (report.corrupt, report.unreadable, report.damaged) == (0, 1, {}), report.problems


def test_storage_that_fails_while_keys_are_compared_costs_no_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = make_corpus(str(tmp_path))
    repeat_keys(corpus)
    put(corpus, tar_name(2), b"garbage")
    open_file, times = type(corpus.fs).open, [0]

    def opened(self: Any, path: str, mode: str = "rb", **options: Any) -> Any:
        times[0] += path.endswith(metadata_name(0))
        if path.endswith(metadata_name(0)) and times[0] == 3:  # after its checksum and its rows
            raise ClientError("no answer")
        return open_file(self, path, mode, **options)

    monkeypatch.setattr(type(corpus.fs), "open", opened)
    report = verify(corpus)
    assert report.problems[0] == "metadata/00000.parquet: ClientError: no answer"
    assert (report.unreadable, report.corrupt, list(report.damaged)) == (1, 2, [1, 2]), "shard 1 holds what shard 0 holds"


PATIENT = """
import hybridiff.corpus.check

hybridiff.corpus.check.check_regular = lambda *_: None
"""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_ends_it_in_a_line(tmp_path: Path, processes: int) -> None:
    corpus = make_corpus(str(tmp_path))
    for index in range(3):
        corpus.fs.rm_file(corpus.path(tar_name(index)))
        os.mkfifo(tmp_path / tar_name(index))  # storage that never answers
    (tmp_path / "sitecustomize.py").write_text(PATIENT)
    command = [sys.executable, "jobs/verify.py", str(tmp_path), f"--processes={processes}"]
    path = {"PYTHONPATH": f"{tmp_path}:{os.getcwd()}"}
    pipe, environment = subprocess.PIPE, os.environ | path
    started = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, env=environment)
    try:
        readers = [os.open(tmp_path / tar_name(index), os.O_WRONLY) for index in range(processes)]  # once each is opened there
        os.killpg(started.pid, signal.SIGINT)
        assert started.communicate(timeout=30) == ("", "verify: interrupted\n") and started.returncode == 130
    finally:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
    for reader in readers:
        os.close(reader)
