"""Prompt tables on storage that does not answer, or stops in the middle of a file: no mistake, whatever reads the file."""

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from hybridiff.errors import StorageError, UsageError
from tests.prompts.planning import DISK, MEMORY, plan_of

ROWS = 5000


def zipped(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.csv", data)
    return file.getvalue()


def parquet(data: bytes) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"prompt": data.decode().split()}), file, row_group_size=1000)
    return file.getvalue()


PACK = {
    "a.csv": lambda data: data,
    "a.csv.gz": gzip.compress,
    "a.csv.bz2": bz2.compress,
    "a.csv.xz": lzma.compress,
    "a.csv.zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
    "a.csv.zip": zipped,
    "a.parquet": parquet,
    "a.parquet.gz": lambda data: gzip.compress(parquet(data)),
}


@pytest.fixture
def files() -> Iterator[MemoryFileSystem]:
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/trouble", recursive=True)


ERRORS = [OSError("connection was closed"), RuntimeError("token expired"), TimeoutError()]


@pytest.mark.parametrize("name", PACK)
def test_storage_that_stops_in_the_middle_of_a_file(name: str, files: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    data = PACK[name]("\n".join(["prompt", *(f"{row * 7919 % 104729:x}" for row in range(ROWS))]).encode())
    files.pipe_file(f"/trouble/{name}", data)
    read = MemoryFile.read
    given = 0

    def stopping(self: MemoryFile, size: int = -1) -> Any:
        nonlocal given
        found = read(self, size)
        given += len(found)
        if given > len(data) // 2:
            raise error
        return found

    for error, held_bytes in zip(ERRORS, (MEMORY, DISK, MEMORY), strict=True):  # noqa: B007 - raised above
        given = 0
        with monkeypatch.context() as patched, pytest.raises(StorageError, match=rf"^memory://trouble/{name}: cannot be read: "):
            patched.setattr(MemoryFile, "read", stopping)
            plan_of(f"memory://trouble/{name}", held_bytes=held_bytes)
    assert plan_of(f"memory://trouble/{name}", held_bytes=MEMORY).rows in (ROWS, ROWS + 1)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/a.csv", "ftp://127.0.0.1:9/a.csv", "ftp://127.0.0.1:9/*.csv"])
def test_a_server_that_is_not_there(url: str) -> None:
    with pytest.raises(StorageError, match=r"127\.0\.0\.1:9.*: cannot be (read|found): ") as raised:
        plan_of(url)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("number", "kind"), [(5, StorageError), (116, StorageError), (13, UsageError)])
def test_a_local_disk_that_fails(number: int, kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_text("prompt\na\n")

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, "from the disk")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.open", fail)
    with pytest.raises(kind, match=r"a\.csv: cannot be read: .*from the disk"):
        plan_of(tmp_path / "a.csv")


def test_an_own_source_is_told_apart_likewise() -> None:
    class Source:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def identity(self) -> str:
            return "one"

        def __iter__(self) -> Iterator[dict[str, str]]:
            yield {"prompt": "a"}
            raise self.error

    with pytest.raises(StorageError, match=r"^Source: cannot be read: "):
        plan_of(Source(ConnectionResetError(104, "reset")), held_bytes=MEMORY)
    with pytest.raises(UsageError, match=r"^Source: cannot be read: 'a bug'"):
        plan_of(Source(KeyError("a bug")), held_bytes=MEMORY)
