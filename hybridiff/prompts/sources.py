"""Sources of prompts: files behind paths, urls and globs, and own sources; how files are opened."""

import bz2
import glob
import gzip
import io
import lzma
import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import pyarrow as pa

from hybridiff.config import DataConfig, PromptSource
from hybridiff.errors import StorageError, UsageError, access_error, require_utf8
from hybridiff.prompts.names import shown
from hybridiff.secrets import redact
from hybridiff.storage.filesystem import is_local, is_url, locate

FORMATS = (".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".parquet")
CELL_FORMATS = (".csv", ".tsv")
_OTHER_CONTENT = {  # how files begin that have the name of a table and are none
    b"\x1f\x8b": "a .gz file", b"PK\x03\x04": "a .zip or .xlsx file", b"\xfd7zXZ\0": "an .xz file",
    b"\x28\xb5\x2f\xfd": "a .zst file", b"PAR1\x15": "a .parquet file", b"%PDF-1.": "a PDF", b"%PDF-2.": "a PDF",
    b"<!doctype html": "a web page", b"version https://git-lfs": "a pointer to a file of Git LFS",
}  # fmt: skip
FREE_EXPANSION = 16 << 20  # bytes of a compressed file that are not compared with its size
PROBED_MIB = 32  # of what a compressed file unfolds to: more than FREE_EXPANSION
_CHANGES = ("size", "mtime", "created", "ETag", "LastModified", "last_modified", "Last-Modified", "md5", "generation", "modified")


@dataclass(frozen=True)
class Source:
    """A file of rows, or an own source of them.

    Args:
        name: for messages, without secrets
        stem: the file's name without suffixes, from which keys are made
        suffix: suffix of its format; empty for an own source
        files: file system
        path: on the file system
        compression: suffix of its compression
        rows: the own source
    """

    name: str
    stem: str
    suffix: str = ""
    files: fsspec.AbstractFileSystem = None
    path: str = ""
    compression: str | None = None
    rows: PromptSource | None = None

    def place(self, number: int) -> str:
        """A line, or a row of Parquet and own sources, for messages; ``number`` counts from 1."""
        return f"{self.name}, {'line' if self.suffix not in ('', '.parquet') else 'row'} {number}"

    def info(self) -> dict[str, Any]:
        """What the file system knows of the file."""
        with accessing(self.name, "cannot be read"):
            return dict(self.files.info(self.path))

    def version(self) -> list[Any] | None:
        """Values that change whenever the rows do; None where the file system has none."""
        if self.rows is not None:
            with parsing(self.name, "identity() failed"):
                return [self.name, str(self.rows.identity())]
        info = self.info()
        changes = {name: str(info[name]) for name in _CHANGES if info.get(name) is not None}
        return [self.name, self.path, self.suffix, self.compression, changes] if changes.keys() - {"size"} else None


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of a source as read.

    Args:
        source: where they are from
        columns: lists of Python values (cells: text or None) or Arrow columns
        numbers: line or row number of each row, from 1
        errors: by position of the row, the column that could not be read and why
    """

    source: Source
    columns: dict[str, list[Any] | pa.ChunkedArray]
    numbers: list[int] | range
    errors: dict[int, tuple[str, str]] = field(default_factory=dict)

    def place(self, row: int) -> str:
        """File and line of a row, counted from 0, for messages."""
        return self.source.place(self.numbers[row])

    def error(self, row: int) -> str | None:
        """Why a row, counted from 0, could not be read."""
        column, reason = self.errors.get(row, ("", ""))
        return f"{shown(column)} can't be read: {reason}" if reason else None

    def values(self, column: str) -> list[Any]:
        """A column as Python values."""
        values = self.columns[column]
        return values if isinstance(values, list) else values.to_pylist()


def find_sources(given: Sequence[str | PromptSource]) -> list[Source]:
    """The files behind paths, urls and globs, and own sources, in the order given; the files of a glob are sorted.

    Raises:
        UsageError: a glob matches nothing, a format or file system is unknown, or a local file is special.
        StorageError: a file system does not answer.
    """
    return [source for one in given for source in _expand(one)]


def check_reading(data: DataConfig, sources: Sequence[Source]) -> None:
    """Refuses options of reading that none of the sources uses.

    Raises:
        UsageError: names the option.
    """
    suffixes = {source.suffix for source in sources}
    if data.delimiter is not None and suffixes.isdisjoint(CELL_FORMATS):
        raise UsageError(f"data.delimiter is {data.delimiter!r}; allowed: none, as no table is {' or '.join(CELL_FORMATS)}")
    if data.encoding.lower() != "utf-8" and suffixes <= {"", ".parquet"}:
        raise UsageError(f"data.encoding is {data.encoding!r}; allowed: utf-8, as no table is a text file")


@contextmanager
def accessing(name: str, trouble: str) -> Iterator[None]:
    """Turns what a file system raises, each plug-in its own kinds, into a ``UsageError`` or ``StorageError`` about ``name``."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise _access_error(name, trouble, error) from error


@contextmanager
def parsing(name: str, trouble: str) -> Iterator[None]:
    """Turns what a parser or an own source raises about its content into a ``UsageError`` about ``name``.

    Trouble of the storage below it stays a ``StorageError``: parsers have no error numbers, and the system's own errors do.
    """
    try:
        yield
    except (UsageError, StorageError):
        raise
    except Exception as error:
        if isinstance(error, FileNotFoundError) or (isinstance(error, OSError) and error.errno is not None):
            raise _access_error(name, trouble, error) from error
        raise UsageError(f"{name}: {trouble}: {_reason(error)}") from error


def _access_error(name: str, trouble: str, error: Exception) -> UsageError | StorageError:
    found = access_error(f"{name}: {trouble}: {_reason(error)}", error)
    missing = isinstance(error, FileNotFoundError) and isinstance(found, UsageError)
    return UsageError(f"{name}: no such file") if missing else found


def _reason(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:  # of HTTP, which names the url alone
        error = error.__cause__
    return redact(" ".join(str(error).split())) or type(error).__name__


class _Stored:
    """A file that was opened: where storage fails to give its bytes, that is no fault of its content.

    Args:
        name: of its source.
        file: handle of the file system.
    """

    def __init__(self, name: str, file: Any) -> None:
        self._name, self._file = name, file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes."""
        try:
            data: bytes = self._file.read(size)
            return data
        except Exception as error:
            raise _access_error(self._name, "cannot be read", error) from error


@contextmanager
def open_stored(source: Source) -> Iterator[Any]:
    """The file's bytes as they are stored; reading them raises ``StorageError`` where the storage fails."""
    with ExitStack() as stack:
        with accessing(source.name, "cannot be read"):
            file = stack.enter_context(source.files.open(source.path, "rb"))
        yield _Stored(source.name, file)


@contextmanager
def open_source(source: Source, data: DataConfig) -> Iterator[io.BufferedReader]:
    """The file's bytes, decompressed; reading them raises ``UsageError`` where they unfold to too many.

    The first bytes of a compressed file are unfolded once for that alone: its lines, which take far longer, are not read before.
    """
    if source.compression is not None:
        with _unfolding(source, data) as file, parsing(source.name, "cannot be read"):
            for _ in range(PROBED_MIB):
                if not file.read(1 << 20):
                    break
    with _unfolding(source, data) as file:
        yield file


@contextmanager
def _unfolding(source: Source, data: DataConfig) -> Iterator[io.BufferedReader]:
    with ExitStack() as stack:
        raw = file = stack.enter_context(open_stored(source))
        if source.compression is not None:
            with parsing(source.name, "cannot be read"):
                file = stack.enter_context(_DECOMPRESSORS[source.compression](source, raw))
        yield io.BufferedReader(_Unfolded(source, file, raw, data.max_expansion), 1 << 17)


def check_content(source: Source, head: bytes) -> None:
    """Raises ``UsageError`` where a file, unpacked, begins as one of another kind does."""
    for mark, kind in _OTHER_CONTENT.items():
        if source.suffix not in kind and head.lower().startswith(mark.lower()):
            raise UsageError(f"{source.name}: is {kind}; allowed: a {source.suffix} file, as its name says")


class _Unfolded(io.RawIOBase):
    """Counts the bytes of a file as they are read; those of a compressed file are compared with its size."""

    def __init__(self, source: Source, file: Any, raw: Any, limit: float) -> None:
        self._source, self._file, self._raw, self._limit = source, file, raw, limit
        self._bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        self._bytes += len(data)
        buffer[: len(data)] = data
        if self._file is not self._raw and self._bytes > max(FREE_EXPANSION, self._limit * max(self._raw.tell(), 1)):
            raise UsageError(
                f"{self._source.name}: unfolds to more than {self._limit:g} times its size; allowed: that much, or a higher "
                "data.max_expansion"
            )
        return len(data)

    def tell(self) -> int:
        return self._bytes


def _unzip(source: Source, raw: Any) -> Any:
    archive = zipfile.ZipFile(raw)
    files = [one for one in archive.infolist() if not one.is_dir() and not one.filename.startswith("__MACOSX/")]
    if len(files) != 1:
        names = ", ".join(repr(one.filename) for one in files[:3]) + (", ..." if len(files) > 3 else "")
        raise UsageError(f"{source.name}: holds {len(files)} files ({names}); allowed: one, or unpack it and name them")
    suffix = PurePosixPath(files[0].filename).suffix.lower()
    if suffix in (*FORMATS, *_DECOMPRESSORS) and suffix != source.suffix:
        raise UsageError(f"{source.name}: holds {files[0].filename!r}; allowed: a {source.suffix} file, as its name says")
    return archive.open(files[0])


class _Streams(io.RawIOBase):
    """Streams of a compression one after another; what follows the last one is padding of zeros, or an error.

    Python's own readers take anything that is no stream for the end, so that damage between streams would cost rows silently.

    Args:
        raw: the file.
        make: makes a decompressor of one stream.
    """

    def __init__(self, raw: Any, make: Callable[[], Any]) -> None:
        self._raw, self._make = raw, make
        self._stream = make()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while True:
            given = b""
            if self._stream.eof:
                given = self._stream.unused_data.lstrip(b"\0")
                while not given:
                    if not (more := self._raw.read(1 << 16)):
                        return b""
                    given = more.lstrip(b"\0")
                self._stream = self._make()
            elif self._stream.needs_input and not (given := self._raw.read(1 << 16)):
                raise EOFError("it ends in the middle")
            if data := self._stream.decompress(given, size):
                return bytes(data)


_DECOMPRESSORS: dict[str, Callable[[Source, Any], Any]] = {
    ".gz": lambda _, raw: gzip.GzipFile(fileobj=raw),
    ".bz2": lambda _, raw: _Streams(raw, bz2.BZ2Decompressor),
    ".xz": lambda _, raw: _Streams(raw, lzma.LZMADecompressor),
    ".zst": lambda _, raw: pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd"),
    ".zip": _unzip,
}


def _expand(given: str | PromptSource) -> list[Source]:
    """Local paths as a shell expands them, but a path that exists is that path; urls as their file system expands them."""
    if not isinstance(given, str):
        return [Source(type(given).__name__, type(given).__name__, rows=given)]
    name, matches = redact(given), None
    with accessing(name, "cannot be found"):
        files, path = locate(given)
        if is_url(given) and glob.has_magic(path) and not files.exists(path):  # else it may be a url's query
            whole = str if is_local(files) else files.unstrip_protocol
            matches = [(whole(found), str(found)) for found in files.glob(path)]
        elif not is_url(given) and glob.has_magic(path) and not os.path.lexists(path):
            matches = [(found, os.path.abspath(found)) for found in glob.glob(os.path.expanduser(given), recursive=True)]
    if matches == []:
        raise UsageError(f"{name}: matches no file")
    return [_source(redact(found), files, at) for found, at in sorted(matches or [(given, path)])]


def _source(name: str, files: fsspec.AbstractFileSystem, path: str) -> Source:
    require_utf8(name)
    if is_local(files):
        path = os.path.abspath(path)
        _check_regular(name, path)
    file = PurePosixPath(re.sub(r"\?.*", "", path) if path.startswith(("http://", "https://")) else path)
    compression = file.suffix.lower() if file.suffix.lower() in _DECOMPRESSORS else None
    file = file.with_suffix("") if compression else file
    suffix = file.suffix.lower()
    if suffix not in FORMATS:
        allowed = f"{', '.join(FORMATS)}, also compressed (such as .jsonl.gz)"
        raise UsageError(f"{name}: unknown format {file.suffix!r}; allowed: {allowed}")
    return Source(name, file.stem, suffix, files, path, compression)


def _check_regular(name: str, path: str) -> None:
    """Refuses directories, and special files, which may never end or never answer."""
    with accessing(name, "cannot be read"):
        mode = Path(path).stat().st_mode
    if stat.S_ISDIR(mode):
        raise UsageError(f"{name}: is a directory; allowed: files, or a glob such as {name.rstrip('/')}/*.parquet")
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFCHR: "a character device", stat.S_IFBLK: "a block device"}
        raise UsageError(f"{name}: is {kinds.get(stat.S_IFMT(mode), 'a special file')}; allowed: regular files")
