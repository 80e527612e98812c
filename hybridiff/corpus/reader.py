"""Reading committed shards: samples of tars, counts of markers, failed rows; damage and storage trouble are different errors."""

import hashlib
import os
import stat
import tarfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from hybridiff.columns import IMAGE
from hybridiff.corpus.corpus import REPAIR, Corpus
from hybridiff.corpus.layout import marker_counts, marker_name, metadata_name, tar_name
from hybridiff.errors import StorageError, UsageError
from hybridiff.images import IMAGE_FORMATS
from hybridiff.secrets import one_line
from hybridiff.storage.folder import SMALL_FILE, only_os_errors, read_each

CHUNK = 1 << 20  # bytes read at once
LARGEST_MEMBER = 256 << 20  # bytes of a file inside a tar
_LARGEST_HEADER = 1 << 20  # bytes of an extended header
_MOST_FILES = 16  # of a sample
_ROWS = 64  # read at once


class ShardDamaged(StorageError):
    """A committed shard does not hold what its marker says; the message names the file and what to do."""


def damaged(corpus: Corpus, name: str, reason: object) -> ShardDamaged:
    """The error about a file inside the corpus.

    Args:
        corpus: the corpus.
        name: name of the file in it.
        reason: error that was raised, or a text.
    """
    text = one_line(reason) if isinstance(reason, Exception) else str(reason)
    return ShardDamaged(f"{name} in {corpus.url} is damaged ({text}); {REPAIR}")


@contextmanager
def reading(corpus: Corpus, index: int, name: str) -> Iterator[None]:
    """Turns what the body raises about a file into ``ShardDamaged``, or a ``StorageError`` that names the file.

    Args:
        corpus: the corpus.
        index: index of the file's shard.
        name: name of the file in the corpus.

    Raises:
        ShardDamaged: the file is damaged or missing.
        FileNotFoundError: the whole output was removed during the run.
    """
    try:
        yield
    except (ShardDamaged, AssertionError):
        raise
    except Exception as error:
        corpus.check_there()
        if not _is_damaged(corpus, index, name):  # storage clients raise types of their own; readers of damaged files any type
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"{name} in {corpus.url}: {one_line(error)}") from error
        raise damaged(corpus, name, error) from error


def check_regular(corpus: Corpus, name: str, expected: int | None = None) -> None:
    """Looks at a file's metadata before it is read, which may take forever of a device or a FIFO.

    Args:
        corpus: the corpus.
        name: name of the file in it.
        expected: size in bytes; None allows any up to ``SMALL_FILE``.

    Raises:
        ValueError: it is no regular file, or of another size.
        FileNotFoundError: it is missing.
    """
    path = corpus.path(name)
    if isinstance(corpus.fs, LocalFileSystem):
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("not a regular file")
        size: int | None = found.st_size
    else:
        with only_os_errors(path):
            found_there = corpus.fs.info(path)
        if found_there.get("type", "file") != "file":
            raise ValueError(f"a {found_there['type']}, not a file")
        size = found_there.get("size")
    if size is None:
        return
    if expected is not None and size != expected:
        raise ValueError(f"{size} bytes, its marker says {expected}")
    if expected is None and size > SMALL_FILE:
        raise ValueError(f"{size} bytes; allowed: {SMALL_FILE} or fewer")


def whole_marker(corpus: Corpus, fingerprint: str, index: int) -> dict[str, Any]:
    """The commit marker of a shard of a run whose files are there, in the marker's sizes.

    Raises:
        UsageError: it is damaged or of another run, or a file is missing or of another size.
    """
    name = marker_name(index)
    try:
        marker = corpus.read_marker(index)
        marker_counts(marker, index, fingerprint)
        for name in (tar_name(index), metadata_name(index)):
            check_regular(corpus, name, marker["files"][name]["bytes"])
    except FileNotFoundError as error:
        raise not_whole(corpus, f"{name} is missing") from error
    except ValueError as error:
        raise not_whole(corpus, f"{name}: {one_line(error)}") from error
    return marker


def not_whole(corpus: Corpus, why: str) -> UsageError:
    """The error about a corpus that a command needs to be whole."""
    return UsageError(f"{corpus.url} is not whole: {why}; allowed: a corpus that hybridiff verify finds whole")


class CountedFile:
    """Counts and hashes what is read of a file from its start on; all but reading is the handle's own.

    Attributes:
        bytes: bytes read so far.
        failed: whether the handle has failed to give some bytes.
    """

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self._hash, self.bytes = hashlib.sha256(), 0
        self.failed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes."""
        try:
            data = self._handle.read(size)
        except BaseException:
            self.failed = True
            raise
        self._hash.update(data)
        self.bytes += len(data)
        return data

    def drain(self) -> None:
        """Reads the rest."""
        while self.read(CHUNK):
            pass

    @property
    def sha256(self) -> str:
        """SHA-256 of what was read so far, in hexadecimal."""
        return self._hash.hexdigest()

    def differs(self, expected: dict[str, Any]) -> str:
        """How size or checksum differ from what a marker says of the file; empty if they do not."""
        if self.bytes != expected["bytes"]:
            return f"{self.bytes} bytes, its marker says {expected['bytes']}"
        return "" if self.sha256 == expected["sha256"] else f"SHA-256 is {self.sha256}, its marker says {expected['sha256']}"


def differs(corpus: Corpus, name: str, expected: dict[str, Any]) -> str:
    """How a file differs from what a marker says of it; empty if it does not. Reads all of it, if its size is right."""
    try:
        check_regular(corpus, name, expected["bytes"])
    except ValueError as error:
        return str(error)
    with corpus.fs.open(corpus.path(name), "rb") as handle:
        counted = CountedFile(handle)
        counted.drain()
    return counted.differs(expected)


def read_samples(handle: IO[bytes]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Streams a shard's tar: each key with its files by extension, one sample in memory at a time.

    Raises:
        ValueError: a member is no plain file, is larger than ``LARGEST_MEMBER``, or occurs twice; or something follows the end
            of the archive.
    """
    with tarfile.open(fileobj=handle, mode="r|", tarinfo=_Member) as tar:
        for key, members in groupby(tar, key=lambda member: member.name.partition(".")[0]):
            files: dict[str, bytes] = {}
            for member in members:
                extension = member.name.partition(".")[2]
                if extension in files or len(files) == _MOST_FILES:
                    raise ValueError(f"holds {member.name!r} twice" if extension in files else f"too many files of {key!r}")
                files[extension] = _content(tar, member)
            yield key, files
        _check_end(handle, tar.offset)


def shard_samples(
    corpus: Corpus, index: int, columns: Sequence[str] | None = None
) -> Generator[tuple[dict[str, Any], dict[str, bytes]], None, None]:
    """A committed shard's rows in order, each with its files by extension; rows that failed have none.

    Args:
        corpus: the corpus.
        index: index of the shard.
        columns: names of the columns, ``key`` and ``status`` among them; None: all but embedded images.

    Raises:
        ShardDamaged: rows and files do not belong together, or can't be read.
    """
    name = tar_name(index)
    with reading(corpus, index, name), corpus.fs.open(corpus.path(name), "rb") as handle:
        samples = read_samples(handle)
        for row in _rows(corpus, index, columns):
            key, files = next(samples, ("", {})) if row["status"] == "ok" else (row["key"], {})
            if key != row["key"]:
                raise damaged(corpus, name, f"it holds {key!r} where {row['key']!r} belongs")
            yield row, files


def _rows(corpus: Corpus, index: int, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    name = metadata_name(index)
    with reading(corpus, index, name), corpus.fs.open(corpus.path(name), "rb") as handle:
        file = pq.ParquetFile(handle)
        names = columns or [column for column in file.schema_arrow.names if column != IMAGE.name]
        for batch in file.iter_batches(_ROWS, columns=names):
            yield from batch.to_pylist()


def row_image(corpus: Corpus, index: int, key: str, data: bytes | None, digest: str | None) -> bytes:
    """An image file that is the one of its row: a damaged one may decode to other pixels.

    Args:
        corpus: the corpus.
        index: index of the shard.
        key: key of the row.
        data: the file; None if there is none.
        digest: SHA-256 that the row has.

    Raises:
        ShardDamaged: it is another one.
    """
    if data is None or hashlib.sha256(data).hexdigest() != digest:
        raise damaged(corpus, tar_name(index), f"the image of {key!r} is not the one of its row")
    return data


def image_places(handle: IO[bytes]) -> dict[str, tuple[int, int]]:
    """Where a shard's tar holds the image of each key: offset and size in bytes. Reads the headers alone.

    Raises:
        ValueError: an image is no plain file, or is larger than ``LARGEST_MEMBER``; or it is not a tar.
    """
    found: dict[str, tuple[int, int]] = {}
    with tarfile.open(fileobj=handle, mode="r:", tarinfo=_Member) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            if extension in IMAGE_FORMATS:
                _check_plain(member)
                found[key] = member.offset_data, member.size
    return found


def _check_end(handle: IO[bytes], content: int) -> None:
    """Raises ValueError unless what was not read of a tar by records, behind ``content`` bytes, is its padding.

    The end is two blocks of zeros and zeros up to a whole record. Reading stops in the record with the first of the two.
    """
    read, whole = (-(-(content + blocks * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE for blocks in (1, 2))
    rest = handle.read(whole - read + 1)
    if len(rest) > whole - read or rest.strip(b"\0"):
        raise ValueError("something follows the end of the archive")


class _Member(tarfile.TarInfo):
    """A member of a tar whose extended header fits in memory and that is not sparse."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        extended = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
        if self.type == tarfile.GNUTYPE_SPARSE or (self.type in extended and self.size > _LARGEST_HEADER):
            raise ValueError(f"{self.name!r} in the tar is sparse, or has a header of more than {_LARGEST_HEADER} bytes")
        member: tarfile.TarInfo = super()._proc_member(tar)  # type: ignore[misc]
        return member


def _check_plain(member: tarfile.TarInfo) -> None:
    if not member.isreg() or member.issparse():
        raise ValueError(f"{member.name!r} in the tar is not a plain file")
    if member.size > LARGEST_MEMBER:
        raise ValueError(f"{member.name!r} in the tar has {member.size} bytes; allowed: {LARGEST_MEMBER} or fewer")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    _check_plain(member)
    file = tar.extractfile(member)
    assert file is not None, member.name
    return file.read()


def totals(corpus: Corpus, indices: Iterable[int]) -> dict[str, int]:
    """The sums of ``rows``, ``ok`` and ``failed`` over the markers of these shards.

    Raises:
        ShardDamaged: one of the markers is damaged.
    """
    counts, broken = _counts(corpus, indices)
    for damage in broken.values():
        raise damage
    return {name: sum(count[name] for count in counts.values()) for name in ("rows", "ok", "failed")}


def with_failures(corpus: Corpus, indices: Iterable[int]) -> tuple[dict[int, int], dict[int, ShardDamaged]]:
    """The committed shards among these that have failed rows, with their number; and the shards whose markers are damaged."""
    counts, broken = _counts(corpus, indices)
    return {index: count["failed"] for index, count in counts.items() if count["failed"]}, broken


def failed_keys(corpus: Corpus, index: int) -> frozenset[str]:
    """The keys of the failed rows of a committed shard.

    Raises:
        ShardDamaged: its rows are damaged or missing.
    """
    name = metadata_name(index)
    with reading(corpus, index, name), corpus.fs.open(corpus.path(name), "rb") as handle:
        rows = pq.read_table(handle, columns=["key", "status"]).to_pylist()
    return frozenset(row["key"] for row in rows if row["status"] == "error")


def read_schema(corpus: Corpus, index: int = 0) -> pa.Schema:
    """The columns of a committed shard's rows.

    Raises:
        ShardDamaged: its rows are damaged or missing.
    """
    name = metadata_name(index)
    with reading(corpus, index, name), corpus.fs.open(corpus.path(name), "rb") as handle:
        return pq.read_schema(handle)


def _is_damaged(corpus: Corpus, index: int, name: str) -> bool:
    try:
        marker = corpus.read_marker(index)
        marker_counts(marker, index)
        return name in marker["files"] and bool(differs(corpus, name, marker["files"][name]))
    except (ValueError, FileNotFoundError):
        return True


def _counts(corpus: Corpus, indices: Iterable[int]) -> tuple[dict[int, dict[str, int]], dict[int, ShardDamaged]]:
    found = read_each(partial(_count, corpus), sorted(indices))
    counts = {index: one for index, one in found.items() if not isinstance(one, ShardDamaged)}
    return counts, {index: one for index, one in found.items() if isinstance(one, ShardDamaged)}


def _count(corpus: Corpus, index: int) -> dict[str, int] | ShardDamaged:
    try:
        return marker_counts(corpus.read_marker(index), index)
    except ValueError as error:
        return damaged(corpus, marker_name(index), error)
