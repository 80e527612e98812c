"""The directory of a corpus, at any fsspec url, and its small files."""

import errno
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import datetime, timezone
from typing import Any, TypeVar

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from hybridiff.errors import UsageError
from hybridiff.secrets import one_line, redact
from hybridiff.storage.patience import patience_s, patient
from hybridiff.storage.protocols import protocols
from hybridiff.storage.publish import Publication, publish_bytes, publishing

_EXCLUSIVE = frozenset({"file", "local", "s3", "s3a", "memory"})  # memory: within one process
_AT_ONCE = 16  # small files: remote ones are all waiting
_LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_Found = TypeVar("_Found")
_Key = TypeVar("_Key")


class Folder:
    """A directory that holds a corpus, or will.

    Args:
        url: A path or any fsspec url.

    Attributes:
        url: Without secrets.
        fs: The file system.
        root: The directory's path on it.

    Raises:
        UsageError: If no file system is known, or installed, for the url.
    """

    def __init__(self, url: str) -> None:
        self.url: str = redact(url)
        try:
            self.fs, root = patient(*url_to_fs(url))
        except Exception as error:  # a file system's own mistakes have no common type
            raise UsageError(f"output.url is {self.url}: no file system for it ({one_line(error)})") from error
        self.root: str = root.rstrip("/")

    def path(self, name: str) -> str:
        """The path, on the file system, of a name inside the corpus."""
        return f"{self.root}/{name}"

    def read(self, name: str) -> bytes:
        """The whole of a small file."""
        data: bytes = self.fs.cat_file(self.path(name))
        return data

    def publish(self, name: str, data: bytes, exclusive: bool = False) -> None:
        """Publishes a small file that several processes may publish at once; ``exclusive``: unless it is there already.

        Raises:
            FileExistsError: If it is, and ``exclusive``.
        """
        publish_bytes(self.fs, self.path(name), data, exclusive=exclusive, sweep=False)

    def remove(self, name: str) -> None:
        """Removes a file.

        Raises:
            FileNotFoundError: If there is none.
        """
        self.fs.rm_file(self.path(name))

    @property
    def creates_if_absent(self) -> bool:
        """Whether the storage creates a file only if it is absent, so that of several processes one gets it."""
        return bool(protocols(self.fs) & _EXCLUSIVE)

    @property
    def retry_budget_s(self) -> float:
        """Seconds for which a request to the storage is retried; 0 if it is not."""
        return patience_s(self.fs)

    def publishing(self, name: str, sweep: bool) -> AbstractContextManager[Publication]:
        """Opens a file that appears, whole, when the body ends, and not at all if it raises.

        Args:
            sweep: Whether what others left of it unfinished is removed: for when nobody else may be at it.
        """
        return publishing(self.fs, self.path(name), sweep=sweep)

    def names(self, directory: str) -> list[str]:
        """Names of the files in a directory of the corpus, sorted, with one listing; none if there is no such directory."""
        path = self.path(directory) if directory else self.root
        self.fs.invalidate_cache(path)
        try:
            found = self.fs.ls(path, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name for name in (one.rstrip("/").rpartition("/")[2] for one in found) if name)

    def modified(self, name: str) -> datetime | None:
        """When a file was written, by the storage's clock; None if there is none."""
        self.fs.invalidate_cache(self.path(name).rpartition("/")[0])
        try:
            return modified(self.fs.info(self.path(name)))
        except FileNotFoundError:
            return None

    def passing(self, error: Exception) -> bool:
        """Whether an error may be gone by the next shard: of remote storage, and not for lack of rights, space or the place."""
        if _upload_gone(error):  # aborted by a rule of the storage against old ones: the next may live
            return True
        if isinstance(self.fs, (LocalFileSystem, MemoryFileSystem)) or isinstance(error, (UsageError, FileNotFoundError)):
            return False
        return not isinstance(error, PermissionError) and getattr(error, "errno", None) not in _LASTING


def read_each(read: Callable[[_Key], _Found], keys: Iterable[_Key]) -> dict[_Key, _Found]:
    """What ``read`` finds for each key, in their order, several at once; what it raises for the first of them is raised."""
    keys = list(keys)
    if not keys:
        return {}
    with ThreadPoolExecutor(_AT_ONCE) as readers:
        return dict(zip(keys, readers.map(read, keys), strict=True))


def modified(found: dict[str, Any]) -> datetime:
    """When a listed file was written, under the names that file systems have for it."""
    given = next((found[name] for name in ("mtime", "LastModified", "last_modified", "updated", "created") if found.get(name)), 0)
    when = given if isinstance(given, datetime) else _parsed(given)
    return when if when.tzinfo else when.replace(tzinfo=timezone.utc)


def _parsed(given: Any) -> datetime:
    return datetime.fromisoformat(given) if isinstance(given, str) else datetime.fromtimestamp(float(given), timezone.utc)


def _upload_gone(error: BaseException) -> bool:
    """Whether S3 says that an upload, not the place it was meant for, is no more."""
    response = getattr(error.__cause__, "response", None)
    return isinstance(response, dict) and response.get("Error", {}).get("Code") == "NoSuchUpload"
