"""Sources of prompts: the files behind paths, urls and globs, own objects, and how files are opened."""

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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from hybridiff.config import DataConfig, PromptSource
from hybridiff.errors import UsageError
from hybridiff.secrets import redact
from hybridiff.storage.filesystem import is_local, is_url, locate

FORMATS = (".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".parquet")
CELL_FORMATS = (".csv", ".tsv")
FREE_EXPANSION = 16 << 20  # bytes of a compressed file that are not compared with its size
_CHANGES = ("size", "mtime", "created", "ETag", "LastModified", "last_modified", "Last-Modified", "md5", "generation", "modified")
_ALLOWED = f"allowed: {', '.join(FORMATS)}, also compressed (such as .jsonl.gz)"


@dataclass(frozen=True)
class Source:
    """A file of rows, or an own source of them.

    Args:
        name: for messages, without secrets
        stem: the file's name without suffixes, of which keys are made
        suffix: of its format; empty for an own source
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

    def size(self) -> int | None:
        """Bytes of the file; None where its storage does not say, as some web servers."""
        with reported(self.name, "cannot be read"):
            size: int | None = self.files.info(self.path).get("size")
        return size

    def version(self) -> list[Any] | None:
        """What changes whenever the file or the rows of an own source do; None where its file system does not tell."""
        if self.rows is not None:
            with reported(self.name, "identity() failed"):
                return [self.name, str(self.rows.identity())]
        with reported(self.name, "cannot be read"):
            info = self.files.info(self.path)
        changes = {name: str(info[name]) for name in _CHANGES if info.get(name) is not None}
        return [self.name, self.path, self.suffix, self.compression, changes] if changes.keys() - {"size"} else None


def find_sources(given: Sequence[str | PromptSource]) -> list[Source]:
    """The files behind paths, urls and globs, and own sources, in the order given; the files of a glob are sorted.

    Raises:
        UsageError: a glob matches nothing, a format is unknown, a local file is special, or a file system can't be reached.
    """
    return [source for one in given for source in (_expand(one) if isinstance(one, str) else [_own(one)])]


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


@contextmanager
def open_source(source: Source, data: DataConfig) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed; reading them raises ``UsageError`` where they unfold to too many."""
    with reported(source.name, "cannot be read"):
        raw = source.files.open(source.path, "rb")
    with raw:
        if source.compression is None:
            yield io.BufferedReader(_Unfolded(source, raw, raw, float("inf")), 1 << 17)
            return
        with reported(source.name, "cannot be read"):
            opened = _DECOMPRESSORS[source.compression](source, raw)
        with opened:
            yield io.BufferedReader(_Unfolded(source, opened, raw, data.max_expansion), 1 << 17)


class _Unfolded(io.RawIOBase):
    """Bytes of a file as they are read, counted, and for compressed files compared with the bytes that they were made of."""

    def __init__(self, source: Source, file: Any, raw: Any, limit: float) -> None:
        self._source, self._file, self._raw, self._limit = source, file, raw, limit
        self._bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        self._bytes += len(data)
        buffer[: len(data)] = data
        if self._bytes > FREE_EXPANSION and self._file is not self._raw and self._bytes > self._limit * max(self._raw.tell(), 1):
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
    return archive.open(files[0])


_DECOMPRESSORS: dict[str, Callable[[Source, Any], Any]] = {
    ".gz": lambda _, raw: gzip.GzipFile(fileobj=raw),
    ".bz2": lambda _, raw: bz2.BZ2File(raw),
    ".xz": lambda _, raw: lzma.LZMAFile(raw),  # noqa: SIM115
    ".zst": lambda _, raw: pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd"),
    ".zip": _unzip,
}


def _own(rows: PromptSource) -> Source:
    name = type(rows).__name__
    return Source(name, name, rows=rows)


def _expand(given: str) -> list[Source]:
    return _expand_url(given) if is_url(given) else _expand_path(given)


def _expand_path(given: str) -> list[Source]:
    """Local files, as a shell would find them, but that a path that exists is that path."""
    files, path = LocalFileSystem(), os.path.expanduser(given)
    if not os.path.lexists(path) and glob.has_magic(path):
        matches = sorted(glob.glob(path, recursive=True))
        if not matches:
            raise UsageError(f"{redact(given)}: matches no file")
        return [_source(redact(match), files, os.path.abspath(match)) for match in matches]
    return [_source(redact(given), files, os.path.abspath(path))]


def _expand_url(given: str) -> list[Source]:
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
    if is_local(files):
        _check_regular(name, path)
    file = PurePosixPath(re.sub(r"\?.*", "", path) if path.startswith(("http://", "https://")) else path)
    compression = file.suffix.lower() if file.suffix.lower() in _DECOMPRESSORS else None
    file = file.with_suffix("") if compression else file
    suffix = file.suffix.lower()
    if suffix not in FORMATS:
        raise UsageError(f"{name}: unknown format {file.suffix!r}; {_ALLOWED}")
    return Source(name, file.stem, suffix, files, path, compression)


def _check_regular(name: str, path: str) -> None:
    """Refuses what may never end or never answer."""
    with reported(name, "cannot be read"):
        mode = Path(path).stat().st_mode
    if stat.S_ISDIR(mode):
        raise UsageError(f"{name}: is a directory; allowed: files, or a glob such as {name.rstrip('/')}/*.parquet")
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFCHR: "a character device", stat.S_IFBLK: "a block device"}
        raise UsageError(f"{name}: is {kinds.get(stat.S_IFMT(mode), 'a special file')}; allowed: regular files")
