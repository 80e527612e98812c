"""The directory of a corpus, at any fsspec url, and its small files."""

import errno
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

from hybridiff.errors import StorageError, UsageError, access_error, require
from hybridiff.secrets import one_line, redact, refuse_credentials
from hybridiff.storage.filesystem import creates_if_absent, is_local, is_memory, is_url, locate, retry_budget_s
from hybridiff.storage.publish import Publication, publish_bytes, publishing, remove_file

SMALL_FILE = 64 << 20  # bytes of a file that is read whole, such as a marker, a run record or an evaluation's report
_AT_ONCE = 16  # small files: remote ones are all waiting
_LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_Found = TypeVar("_Found")
_Key = TypeVar("_Key")


def parse_json(data: bytes | str) -> Any:
    """The value of a JSON document.

    Raises:
        ValueError: it is none, or nests too deeply to be read.
    """
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("it nests too deeply") from error


class Folder:
    """A directory that holds a corpus, or will.

    Args:
        url: local path or fsspec url, without credentials
        option: the option that names it, for messages

    Attributes:
        option: the same
        url: the same without secrets
        fs: file system
        root: path of the directory on it

    Raises:
        UsageError: it is empty, no file system is known, or installed, for it, or it holds credentials.
    """

    def __init__(self, url: str, option: str = "output.url") -> None:
        require(url != "", option, url, "a directory or an fsspec url")
        refuse_credentials(option, url)
        self.option = option
        self.url: str = redact(url) if is_url(url) else url
        try:
            self.fs, root = locate(url)
        except Exception as error:  # a file system's own mistakes have no common type, and some connect here
            raise access_error(f"{option} is {self.url}: no file system for it ({one_line(error)})", error) from error
        self.root: str = root.rstrip("/")

    def path(self, name: str) -> str:
        """The path, on the file system, of a name inside the folder, for reading."""
        return f"{self.root}/{name}"

    def target(self, name: str) -> str:
        """The same for writing and removing.

        Raises:
            StorageError: a directory on the way is a link out of the folder.
        """
        if is_local(self.fs):
            self._check_links(name)
        return self.path(name)

    def holds(self, other: "Folder") -> bool:
        """Whether another folder is this one or inside it, by whatever path or links either is named."""
        if is_local(self.fs) and is_local(other.fs):
            mine, others = (os.path.realpath(one.root or "/") for one in (self, other))
        else:
            mine, others = (f"{type(one.fs).__name__}:{one.root}" for one in (self, other))
        return f"{others}/".startswith(f"{mine.rstrip('/')}/")

    def _check_links(self, name: str) -> None:
        directory = self.root
        for part in name.split("/")[:-1]:
            directory = f"{directory}/{part}"
            if os.path.islink(directory):
                leads_to, inside = os.path.realpath(directory), os.path.realpath(self.root)
                if os.path.commonpath([leads_to, inside]) != inside:
                    raise StorageError(f"{directory} is a link out of {self.url}, to {leads_to}; nothing is changed through it")

    def read(self, name: str, most: int = SMALL_FILE) -> bytes:
        """The whole of a small file.

        Args:
            name: inside the folder
            most: largest size of a local file in bytes

        Raises:
            StorageError: it is a FIFO or a device, which may never end, or larger.
        """
        self.check_regular(name, most)
        with only_os_errors(self.path(name)):
            data: bytes = self.fs.cat_file(self.path(name))
        return data

    def check_regular(self, name: str, most: int | None = None) -> None:
        """Refuses a FIFO or a device in place of a local file; whether there is a file is left to reading it.

        Args:
            name: inside the folder
            most: largest size of the file in bytes; None allows any

        Raises:
            StorageError: it is one, or larger.
        """
        if is_local(self.fs):
            _check_regular(self.path(name), most)

    def publish(self, name: str, data: bytes, exclusive: bool = False, sweep: bool = False) -> None:
        """Publishes a small file.

        Args:
            name: inside the folder
            data: content
            exclusive: whether only if there is none yet
            sweep: whether what others left of it unfinished is removed first, as no other process may be at it

        Raises:
            FileExistsError: ``exclusive``, and there is one.
        """
        publish_bytes(self.fs, self.target(name), data, exclusive=exclusive, sweep=sweep)

    def publishing(self, name: str, sweep: bool) -> AbstractContextManager[Publication]:
        """Opens a file that appears, whole, when the body ends, and not at all if it raises; ``sweep`` as in ``publish``."""
        return publishing(self.fs, self.target(name), sweep=sweep)

    def remove(self, name: str) -> None:
        """Removes a file.

        Raises:
            FileNotFoundError: there is none.
        """
        remove_file(self.fs, self.target(name))

    @property
    def creates_if_absent(self) -> bool:
        """Whether the storage creates a file only if it is absent, so that of several processes one does."""
        return creates_if_absent(self.fs)

    @property
    def retry_budget_s(self) -> float:
        """Seconds for which a request to the storage is retried; 0 if it is not."""
        return retry_budget_s(self.fs)

    def names(self, directory: str) -> list[str]:
        """Names of the files in a directory of the corpus, sorted, with one listing; none if there is no such directory."""
        path = self.path(directory) if directory else self.root
        self.fs.invalidate_cache(path)
        try:
            with only_os_errors(path):
                found = self.fs.ls(path, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name for name in (one.rstrip("/").rpartition("/")[2] for one in found) if name)

    def modified(self, name: str) -> datetime | None:
        """When a file was written, by the storage's clock; None if there is none."""
        self.fs.invalidate_cache(self.path(name).rpartition("/")[0])
        try:
            with only_os_errors(self.path(name)):
                return modified(self.fs.info(self.path(name)))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def is_transient(self, error: Exception) -> bool:
        """Whether an error may be gone by the next shard: of remote storage, and not for lack of rights, space or the place."""
        if _upload_gone(error):  # aborted by a rule of the storage against old ones: the next may live
            return True
        if is_local(self.fs) or is_memory(self.fs) or isinstance(error, (UsageError, FileNotFoundError)):
            return False
        return not isinstance(error, PermissionError) and getattr(error, "errno", None) not in _LASTING


def _check_regular(path: str, most: int | None) -> None:
    try:
        found = os.stat(path)
    except OSError:  # reading it says what is wrong
        return
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise StorageError(f"{path}: not a regular file")
    if most is not None and found.st_size > most:
        raise StorageError(f"{path}: {found.st_size} bytes; allowed: {most} or fewer")


@contextmanager
def only_os_errors(path: str) -> Iterator[None]:
    """Turns what a storage client raises of types of its own, as without credentials, into a ``StorageError`` about a path."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise StorageError(f"{path}: {one_line(error)}") from error


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
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def _parsed(given: Any) -> datetime:
    return datetime.fromisoformat(given) if isinstance(given, str) else datetime.fromtimestamp(float(given), UTC)


def _upload_gone(error: BaseException) -> bool:
    """Whether S3 reports that an upload, not the place it was meant for, is no more."""
    cause = error.__cause__
    while cause is not None:
        response = getattr(cause, "response", None)
        if isinstance(response, dict) and response.get("Error", {}).get("Code") == "NoSuchUpload":
            return True
        cause = cause.__cause__
    return False
