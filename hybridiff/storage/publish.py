"""Files that appear under their names whole or not at all, on any fsspec file system.

Object storage does so itself if it commits late. Where files can be renamed, they are written beside their final place (never in
the system's temporary directory, which may be another disk) and then renamed. On local disks a file that has appeared outlasts a
power failure: its content is flushed before it is renamed, and its directory after that.
"""

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from hybridiff.errors import StorageError, UsageError
from hybridiff.storage.filesystem import can_rename, is_s3

PART_BYTES = 8 << 20  # of object storage, which takes 5 MiB or more: larger parts are fewer requests, smaller ones less memory
_PIECE = 1 << 16  # bytes: smaller writes are gathered, as each costs a call to the storage and to the hash; larger ones a copy
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EACCES)  # of FUSE and some network file systems
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EISDIR)  # file systems that flush no directories


class Publication:
    """An open file that nobody sees before ``commit``. Use it from one thread at a time.

    Args:
        fs: file system
        path: final path, without protocol
        exclusive: whether ``commit`` raises ``FileExistsError`` if the path exists by then
        sweep: whether what a killed process left of this same path is removed first; not for paths that several processes may
            publish at once

    Attributes:
        bytes: number of bytes written so far

    Raises:
        StorageError: from any call: the storage failed; the message names the file.
    """

    def __init__(self, fs: AbstractFileSystem, path: str, exclusive: bool = False, sweep: bool = True) -> None:
        self.fs, self.path, self.exclusive = fs, path, exclusive
        self.bytes = 0
        self._hash = hashlib.sha256()
        self._gathered = bytearray()
        self._done = self._discarded = False
        self._staged = can_rename(fs)
        with _named(path):
            if self._staged:
                parent, _, name = path.rpartition("/")
                make_directory(fs, parent or "/")
                if sweep:
                    sweep_leftovers(fs, path)
                self._open_path = f"{parent}/.{name}.{secrets.token_hex(8)}.tmp"
                self._handle = fs.open(self._open_path, "wb")
            else:
                self._open_path = path
                if sweep:
                    sweep_leftovers(fs, path)
                self._handle = _open_object(fs, path, exclusive)

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
        with _named(self.path):
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
        with _named(self.path):
            self._pass_on()
            if self._staged:
                self._handle.flush()
                if isinstance(self.fs, LocalFileSystem):
                    os.fsync(self._handle.fileno())
                self._handle.close()
                _rename(self.fs, self._open_path, self.path, self.exclusive)
            else:
                self._commit_object()
        self._done = True

    def _commit_object(self) -> None:
        try:
            self._handle.close()  # Azure's client creates the blob here
            self._handle.commit()
        except OSError as error:
            if not self.exclusive:
                raise
            self.fs.invalidate_cache(self.path)
            if self._is_there():  # it was created, and the answer lost; or by another process, just the same
                with suppress(Exception):
                    self._handle.discard()  # that process's upload is not this one
                return
            if _was_there(error) or self.fs.exists(self.path):
                raise FileExistsError(self.path) from error
            if error.errno == errno.ENOSYS:
                text = "its server can't create an object only if it is absent; allowed: storage that can, such as AWS S3"
                raise UsageError(f"{self.path}: {text}") from error
            raise

    def _is_there(self) -> bool:
        if self.bytes >= PART_BYTES:
            return False
        try:
            return hashlib.sha256(self.fs.cat_file(self.path)).digest() == self._hash.digest()
        except FileNotFoundError:
            return False

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


def _was_there(error: OSError) -> bool:
    """Whether a server has refused to create an object that it had then; of some, s3fs gives an error of no type of its own."""
    answer = getattr(error.__cause__, "response", None)
    failed = isinstance(answer, dict) and answer.get("Error", {}).get("Code") == "PreconditionFailed"
    return failed or isinstance(error, FileExistsError)


class _NewObject:
    """A small object that ``commit`` creates with one request, as gcsfs and adlfs do only if it is absent."""

    def __init__(self, fs: AbstractFileSystem, path: str) -> None:
        self._fs, self._path, self._content = fs, path, bytearray()
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._content += data

    def close(self) -> None:
        self.closed = True

    def commit(self) -> None:
        self._fs.pipe_file(self._path, bytes(self._content), mode="create")

    def discard(self) -> None:
        self._content.clear()


def _open_object(fs: AbstractFileSystem, path: str, exclusive: bool) -> Any:
    if exclusive and not is_s3(fs):
        return _NewObject(fs, path)
    return fs.open(path, "xb" if exclusive else "wb", block_size=PART_BYTES, autocommit=False)


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


def sweep_leftovers(fs: AbstractFileSystem, path: str) -> None:
    """Removes what publications of exactly this path left unfinished: for when no other process may be at it."""
    if is_s3(fs):
        with suppress(PermissionError):  # not everybody may list uploads
            fs.abort_uploads(path)
    elif can_rename(fs):
        parent, _, name = path.rpartition("/")
        leftover = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]+\.tmp")
        for found in fs.ls(parent or "/", detail=False):
            if leftover.fullmatch(found.rpartition("/")[2]):
                with suppress(FileNotFoundError):
                    fs.rm_file(found)


def remove_file(fs: AbstractFileSystem, path: str) -> None:
    """Removes a file; on a local disk it stays removed after a power failure.

    Raises:
        FileNotFoundError: there is none.
    """
    with _named(path):
        fs.rm_file(path)
        if isinstance(fs, LocalFileSystem):
            flush_directory(path.rpartition("/")[0] or "/")


def make_directory(fs: AbstractFileSystem, path: str) -> None:
    """Makes a directory with those above it; on a local disk they outlast a power failure."""
    if not isinstance(fs, LocalFileSystem):
        fs.makedirs(path, exist_ok=True)
        return
    new = []
    while path and not os.path.isdir(path):
        new.append(path)
        path = os.path.dirname(path)
    for one in reversed(new):
        try:
            os.makedirs(one, exist_ok=True)
        except FileExistsError as error:  # a file has the name: no sign that another process was first
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), one) from error
        flush_directory(os.path.dirname(one) or "/")


def flush_directory(path: str) -> None:
    """Flushes the names in a local directory to the disk, where the file system does so."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(handle)


def _rename(fs: AbstractFileSystem, source: str, target: str, exclusive: bool) -> None:
    """Gives a file its final name.

    Raises:
        FileExistsError: ``exclusive``, and the name exists.
    """
    if isinstance(fs, LocalFileSystem):
        if exclusive:
            _move_if_absent(source, target)
        else:
            os.replace(source, target)
        flush_directory(target.rpartition("/")[0] or "/")
        return
    if exclusive and fs.exists(target):
        raise FileExistsError(target)
    if isinstance(fs, MemoryFileSystem):  # its mv takes brackets in a name for a pattern
        fs.cp_file(source, target)
        fs.rm_file(source)
    else:
        fs.mv(source, target)


def _move_if_absent(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        if os.stat(source).st_nlink < 2:  # else it is linked, and the answer of a network file system was lost
            raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _move_to_new_name(source, target)
        return
    os.unlink(source)


def _move_to_new_name(source: str, target: str) -> None:
    """Moves a file where there are no hard links, to a name that is created for it."""
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))  # the name exists now; for a moment the file is empty
    try:
        os.replace(source, target)
    except BaseException:
        os.unlink(target)
        raise


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Turns an error of the storage that names no file into one that does."""
    try:
        yield
    except (StorageError, FileNotFoundError, FileExistsError, PermissionError):
        raise
    except OSError as error:
        if error.filename is not None:
            raise
        raise StorageError(error.errno or errno.EIO, error.strerror or str(error), path) from error
