"""Files that appear under their names whole or not at all, on any fsspec file system.

Object storage does so itself when told to commit late. Where files can be renamed, they are written beside their final place
(never in the system's temporary directory, which may be another disk) and then renamed.
"""

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from hybridiff.storage.leftovers import sweep_leftovers
from hybridiff.storage.staging import is_staged, rename

PART_BYTES = 8 << 20  # of object storage, which takes 5 MiB or more: larger parts are fewer requests, smaller ones less memory
_PIECE = 1 << 16  # bytes: smaller writes are gathered, as each costs a call to the storage and to the hash; larger ones a copy


class Publication:
    """An open file that nobody sees before ``commit``. Use it from one thread at a time.

    Args:
        fs: The file system.
        path: The final name, without protocol.
        exclusive: Whether ``commit`` raises ``FileExistsError`` if the name was taken meanwhile.
        sweep: Whether what a killed process left of this same name is removed first. Not for names that several
            processes may publish at once.

    Attributes:
        bytes: Written so far.
    """

    def __init__(self, fs: AbstractFileSystem, path: str, exclusive: bool = False, sweep: bool = True) -> None:
        self.fs, self.path, self.exclusive = fs, path, exclusive
        self.bytes = 0
        self._hash = hashlib.sha256()
        self._gathered = bytearray()
        self._done = self._discarded = False
        self._staged = is_staged(fs)
        if self._staged:
            parent, _, name = path.rpartition("/")
            fs.makedirs(parent or "/", exist_ok=True)
            if sweep:
                sweep_leftovers(fs, path)
            self._open_path = f"{parent}/.{name}.{secrets.token_hex(8)}.tmp"
            self._handle = fs.open(self._open_path, "wb")
        else:
            self._open_path = path
            if sweep:
                sweep_leftovers(fs, path)
            self._handle = fs.open(path, "xb" if exclusive else "wb", block_size=PART_BYTES, autocommit=False)

    @property
    def sha256(self) -> str:
        """SHA-256 of what was written so far, in hexadecimal."""
        self._pass_on()
        return self._hash.hexdigest()

    @property
    def closed(self) -> bool:
        """Whether it was committed or discarded."""
        return self._done

    def write(self, data: bytes | memoryview) -> int:
        """Appends ``data`` and returns its length in bytes; after ``discard`` it goes nowhere."""
        size = memoryview(data).nbytes
        if self._discarded:  # tarfile still writes when its stream is collected
            return size
        self.bytes += size
        if size < _PIECE:
            self._gathered += data
        if size >= _PIECE or len(self._gathered) >= _PIECE:
            self._pass_on()
        if size >= _PIECE:
            self._send(data)
        return size

    def _pass_on(self) -> None:
        gathered, self._gathered = self._gathered, bytearray()
        if gathered:
            self._send(gathered)

    def _send(self, data: "bytes | bytearray | memoryview") -> None:
        self._handle.write(data)
        self._hash.update(data)

    def tell(self) -> int:
        """Bytes written so far."""
        return self.bytes

    def flush(self) -> None:
        """Does nothing: there is nothing to see before ``commit``."""

    def commit(self) -> None:
        """Makes the whole file appear. If this raises, call ``discard``."""
        assert not self._done, self.path
        self._pass_on()
        if self._staged:
            self._handle.flush()
            if isinstance(self.fs, LocalFileSystem):
                os.fsync(self._handle.fileno())
            self._handle.close()
            rename(self.fs, self._open_path, self.path, self.exclusive)
        else:
            self._handle.close()
            self._commit_object()
        self._done = True

    def _commit_object(self) -> None:
        try:
            self._handle.commit()
        except OSError as error:  # S3 says that a precondition failed, not which
            self.fs.invalidate_cache(self.path)
            if self.exclusive and self.fs.exists(self.path):
                if self._is_there():  # it was created, and the answer lost; or by another process, just the same
                    with suppress(Exception):
                        self._handle.discard()  # that process's upload is not this one
                    return
                raise FileExistsError(self.path) from error
            raise

    def _is_there(self) -> bool:
        small = self.bytes < PART_BYTES
        return small and hashlib.sha256(self.fs.cat_file(self.path)).digest() == self._hash.digest()

    def discard(self) -> None:
        """Drops everything written, quietly; without effect after ``commit``."""
        if self._done:
            return
        self._done = self._discarded = True
        self._gathered.clear()
        with suppress(Exception):  # it often follows the storage's own failure, which is the one to report
            self._handle.close() if self._staged else self._handle.discard()
        if self._staged:
            with suppress(Exception):  # also where closing failed, as on a full disk
                self.fs.rm_file(self._open_path)
        with suppress(Exception):
            self._handle.closed = True  # else garbage collection of an object's handle would publish what it holds


@contextmanager
def publishing(fs: AbstractFileSystem, path: str, *, exclusive: bool = False, sweep: bool = True) -> Iterator[Publication]:
    """Yields a binary handle; the file appears when the body ends, and not at all if anything raises."""
    publication = Publication(fs, path, exclusive, sweep)
    try:
        yield publication
        publication.commit()
    except BaseException:
        publication.discard()
        raise


def publish_bytes(fs: AbstractFileSystem, path: str, data: bytes, *, exclusive: bool = False, sweep: bool = True) -> Publication:
    """Publishes ``data`` under ``path`` and returns the finished publication, which knows its size and SHA-256."""
    with publishing(fs, path, exclusive=exclusive, sweep=sweep) as handle:
        handle.write(data)
    return handle
