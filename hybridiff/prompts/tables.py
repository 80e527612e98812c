"""Prompt tables: the files of any supported format, local or remote, and their rows as columns."""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any

import fsspec
import pyarrow as pa
from fsspec.utils import infer_compression

from hybridiff.errors import UsageError
from hybridiff.secrets import redact
from hybridiff.storage.filesystem import is_local, locate

FORMATS = (".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".parquet")
CELL_FORMATS = (".csv", ".tsv")


@dataclass(frozen=True)
class Source:
    """A file to read: its name for messages (without secrets), where it is, its format's suffix and its bare stem."""

    name: str
    files: fsspec.AbstractFileSystem
    path: str
    suffix: str
    compression: str | None
    stem: str


@dataclass(frozen=True)
class Table:
    """A file's rows as read, untyped yet: columns of Python values (cells: text or None) or Arrow columns (Parquet).

    ``numbers`` holds each row's line or row number in the file, from 1.
    """

    source: Source
    columns: dict[str, list[Any] | pa.ChunkedArray]
    numbers: Sequence[int]

    def place(self, row: int) -> str:
        """File and line (Parquet: row) of row ``row``, counted from 0, for messages."""
        unit = "row" if self.source.suffix == ".parquet" else "line"
        return f"{self.source.name}, {unit} {self.numbers[row]}"

    def values(self, column: str) -> list[Any]:
        """A column as Python values."""
        values = self.columns[column]
        return values if isinstance(values, list) else values.to_pylist()


def find_sources(given: Sequence[str]) -> list[Source]:
    """The files behind paths, urls and globs, in the order given; a glob's are sorted.

    Raises:
        UsageError: A glob matches nothing, a format is unknown, or a file system can't be reached.
    """
    return [source for pattern in given for source in _expand(pattern)]


@contextmanager
def open_source(source: Source) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed."""
    with reported(source.name, "cannot be read"):
        file = source.files.open(source.path, "rb", compression=source.compression)
    with file:
        yield file


@contextmanager
def reported(name: str, trouble: str) -> Iterator[None]:
    """Turns whatever a file system or parser raises (each plug-in has its own kinds) into a ``UsageError`` about ``name``."""
    try:
        yield
    except UsageError:
        raise
    except FileNotFoundError as error:
        raise UsageError(f"{name}: no such file") from error
    except Exception as error:
        reason = redact(" ".join(str(error).split())) or type(error).__name__
        raise UsageError(f"{name}: {trouble}: {reason}") from error


def _expand(given: str) -> list[Source]:
    name = redact(given)
    with reported(name, "cannot be found"):
        files, path = locate(given)
        # A name with these characters may also be a plain file's, or a url's query.
        is_glob = any(character in path for character in "*?[") and not files.exists(path)
        matches = sorted(map(str, files.glob(path))) if is_glob else []
    if not is_glob:
        return [_source(name, files, path)]
    if not matches:
        raise UsageError(f"{name}: matches no file")
    local = is_local(files)
    return [_source(match if local else redact(files.unstrip_protocol(match)), files, match) for match in matches]


def _source(name: str, files: fsspec.AbstractFileSystem, path: str) -> Source:
    file = PurePosixPath(re.sub(r"\?.*", "", path) if path.startswith(("http://", "https://")) else path)
    compression = infer_compression(file.name)
    file = file.with_suffix("") if compression else file
    if file.suffix.lower() not in FORMATS:
        raise UsageError(
            f"{name}: unknown format {file.suffix!r}; allowed: {', '.join(FORMATS)}, also compressed (such as .jsonl.gz)"
        )
    return Source(name, files, path, file.suffix.lower(), compression, file.stem)


def size_of(source: Source) -> int | None:
    """Bytes of a file; None where its storage does not say, as some web servers.

    Raises:
        UsageError: It is missing or can't be reached.
    """
    with reported(source.name, "cannot be read"):
        size: int | None = source.files.info(source.path).get("size")
        return size


def weight(sources: Sequence[Source]) -> float:
    """Bytes of all files together, those that are compressed (as Parquet is, within) counted several times.

    Infinite where a size is not known.

    Raises:
        UsageError: A file is missing or can't be reached.
    """
    total = 0.0
    for source in sources:
        size = size_of(source)
        factor = 8 if source.compression else 3 if source.suffix == ".parquet" else 1
        total += math.inf if size is None else size * factor
    return total
