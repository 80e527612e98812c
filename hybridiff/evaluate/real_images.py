"""A reference that is no corpus: images in a folder, in tars or in Parquet files, for distributions alone."""

import glob
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from hybridiff.errors import StorageError, UsageError, access_error
from hybridiff.secrets import one_line, redact
from hybridiff.storage.filesystem import is_local, is_url, locate

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")
TAR, PARQUET = ".tar", ".parquet"
_PIECE = 512  # image files of a folder that are one piece
_LARGEST = 256 << 20  # bytes of an image file
_ALLOWED = (
    f"a folder with images ({', '.join(IMAGES)}), .tar or .parquet files, such a file, a glob, or a range such as {{00..10}}.tar"
)


@dataclass(frozen=True)
class RealImages:
    """Images without keys.

    Args:
        url: where they are, as given.
        fs: file system.
        pieces: paths of the files of each piece.
        kind: suffix of what holds the images: .tar, .parquet, or empty for image files.
        versions: what is known of each file that changes with its content.
    """

    url: str
    fs: Any
    pieces: tuple[tuple[str, ...], ...]
    kind: str
    versions: tuple[Any, ...]

    @property
    def shards(self) -> int:
        """Number of pieces."""
        return len(self.pieces)

    def rows(self, index: int) -> int:
        """Number of images of a piece, as far as it is known before it is read."""
        return 0 if self.kind else len(self.pieces[index])

    @property
    def identity(self) -> list[Any]:
        """What changes whenever an image does: name, size and time of each file."""
        return [self.kind, *self.versions]

    def files(self, index: int, size: int) -> Iterator[list[bytes]]:
        """The image files of a piece, in order, ``size`` at a time.

        Raises:
            StorageError: a file can't be read; names it.
        """
        read: Callable[[str], Iterator[bytes]] = {TAR: self._in_tar, PARQUET: self._in_parquet}.get(self.kind, self._file)
        some: list[bytes] = []
        for path in self.pieces[index]:
            with _naming(path):
                for data in read(path):
                    some.append(data)
                    if len(some) == size:
                        yield some
                        some = []
        if some:
            yield some

    def _file(self, path: str) -> Iterator[bytes]:
        with self.fs.open(path, "rb") as handle:
            yield _bounded(handle)

    def _in_tar(self, path: str) -> Iterator[bytes]:
        with self.fs.open(path, "rb") as handle, tarfile.open(fileobj=handle, mode="r|*") as tar:
            for member in tar:
                if member.isreg() and member.name.lower().endswith(IMAGES):
                    content = tar.extractfile(member)
                    assert content is not None, member.name
                    yield _bounded(content)

    def _in_parquet(self, path: str) -> Iterator[bytes]:
        with self.fs.open(path, "rb") as handle:
            file = pq.ParquetFile(handle)
            column = image_column(file.schema_arrow, path)
            for batch in file.iter_batches(16, columns=[column]):
                for value in batch.column(0).to_pylist():
                    data = value.get("bytes") if isinstance(value, dict) else value
                    if data is not None:
                        yield data


def find_images(url: str) -> RealImages:
    """Finds the images behind a folder, a file, a glob or a range such as {00..10}.tar, in order of their names.

    Raises:
        UsageError: there are none, or of several kinds.
    """
    shown = f"--against real:{redact(url)}"
    try:
        fs, path = locate(url)
        paths = sorted(one for each in _expanded(fs, path) for one in _found(fs, each.rstrip("/") or "/", is_url(url)))
        versions = tuple((one, *_version(fs, one)) for one in paths)
    except Exception as error:  # storage clients raise types of their own
        raise access_error(f"{shown} can't be read ({one_line(error)}); allowed: {_ALLOWED}", error) from error
    kinds = sorted({_kind(one) for one in paths})
    if not paths:
        raise UsageError(f"{shown} holds no image; allowed: {_ALLOWED}")
    if len(kinds) > 1:
        words = {"": "image files", TAR: "tars", PARQUET: "Parquet files"}
        raise UsageError(f"{shown} holds {' and '.join(words[kind] for kind in kinds)}; allowed: one kind, such as by a glob")
    if kinds[0] == PARQUET:
        image_column(_schema(fs, paths[0]), paths[0])
    per_piece = 1 if kinds[0] else _PIECE
    pieces = tuple(tuple(paths[start : start + per_piece]) for start in range(0, len(paths), per_piece))
    return RealImages(redact(url), fs, pieces, kinds[0], versions)


def image_column(schema: pa.Schema, path: str) -> str:
    """The column of a Parquet file that holds image files: bytes, or bytes in a struct as ``datasets`` writes them.

    Raises:
        UsageError: there is none, or several and none is named image.
    """
    found = [field.name for field in schema if _holds_bytes(field.type)]
    if "image" in found:
        return "image"
    if len(found) != 1:
        raise UsageError(f"{path} has {len(found)} columns of bytes; allowed: one, or one named image, with image files")
    return str(found[0])


def _schema(fs: Any, path: str) -> pa.Schema:
    try:
        with fs.open(path, "rb") as handle:
            return pq.read_schema(handle)
    except Exception as error:  # of the storage, or of a file that is no Parquet
        damaged = isinstance(error, pa.ArrowInvalid)
        message = f"{path} can't be read as Parquet ({one_line(error)}); allowed: whole files"
        raise (UsageError(message) if damaged else access_error(message, error)) from error


def _expanded(fs: Any, path: str) -> list[str]:
    """The paths of a range such as {00..10}.tar; a path that exists is that path."""
    if "{" not in path or fs.exists(path):
        return [path]
    from braceexpand import braceexpand  # of the extra evaluate

    return list(braceexpand(path))


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(kind.field(place).name == "bytes" and _holds_bytes(kind.field(place).type) for place in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _found(fs: Any, path: str, remote: bool) -> Iterator[str]:
    if is_local(fs) and glob.has_magic(path) and not os.path.lexists(path):
        yield from (one for one in glob.glob(path, recursive=True) if os.path.isfile(one) and _kind(one) is not None)
    elif remote and glob.has_magic(path) and not fs.exists(path):
        yield from (one for one in fs.glob(path) if _kind(one) is not None)
    elif is_local(fs) and os.path.isdir(path):
        for folder, _, names in os.walk(path):  # links to directories are not followed
            files = (os.path.join(folder, name) for name in names if not name.startswith("."))
            yield from (one for one in files if _kind(one) is not None and os.path.isfile(one))
    elif fs.isdir(path):
        yield from (one for one in fs.find(path) if _kind(one) is not None)
    elif fs.isfile(path) and _kind(path) is not None:
        yield path


def _kind(path: str) -> Any:
    """Suffix of a container, empty for an image file, None for anything else."""
    suffix = os.path.splitext(path)[1].lower()
    return suffix if suffix in (TAR, PARQUET) else "" if suffix in IMAGES else None


def _version(fs: Any, path: str) -> list[str]:
    info = fs.info(path)
    return [str(info[name]) for name in ("size", "mtime", "ETag", "LastModified", "updated") if info.get(name) is not None]


def _bounded(handle: IO[bytes]) -> bytes:
    data = handle.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise ValueError(f"an image file of more than {_LARGEST} bytes")
    return data


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Turns what reading a file raises into a ``StorageError`` that names it."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:  # of the storage, or of readers of damaged files
        raise StorageError(f"{path} can't be read: {one_line(error)}") from error
