"""A corpus: a directory at any fsspec url, its commit markers and its run record."""

import errno
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import datetime, timezone
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from hybridiff.config import UsageError
from hybridiff.secrets import hide, redact
from hybridiff.sinks.names import MARKER, RUN_RECORD, marker_name
from hybridiff.sinks.publish import Publication, publish_bytes, publishing
from hybridiff.sinks.record import RunRecord, compared, differences
from hybridiff.storage.patience import patient

REPAIR = "run jobs/verify.py --repair, then generate.py without --retry_failed"  # what to do about a damaged shard
_READERS = 16  # small files read at once: remote ones are all waiting
_LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Corpus:
    """The directory of a corpus.

    Args:
        url: A path or any fsspec url.

    Attributes:
        url: Without secrets.
        fingerprint: Of the run that was started here; None before. Likewise:
        versions: Of packages that it runs with.
        other_versions: How these differ from those that the run record holds.

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
        self.fingerprint: str | None = None
        self.versions: dict[str, Any] = {}
        self.other_versions: list[str] = []

    def path(self, name: str) -> str:
        """The path, on the file system, of a name inside the corpus."""
        return f"{self.root}/{name}"

    def read(self, name: str) -> bytes:
        """The whole of a small file."""
        data: bytes = self.fs.cat_file(self.path(name))
        return data

    def publish(self, name: str, data: bytes) -> None:
        """Publishes a small file that several processes may publish at once."""
        publish_bytes(self.fs, self.path(name), data, sweep=False)

    def publishing(self, name: str) -> AbstractContextManager[Publication]:
        """Opens a file that appears, whole, when the body ends, and not at all if it raises; for one process at a time."""
        return publishing(self.fs, self.path(name))

    def names(self, directory: str) -> list[str]:
        """Names of the files in a directory of the corpus, sorted, with one listing; none if there is no such directory."""
        path = self.path(directory) if directory else self.root
        self.fs.invalidate_cache(path)
        try:
            found = self.fs.ls(path, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name for name in (one.rstrip("/").rpartition("/")[2] for one in found) if name)

    def committed(self) -> set[int]:
        """Indices of the shards that have a commit marker."""
        return {int(match[1]) for match in map(MARKER.fullmatch, self.names("commits")) if match}

    def commit_times(self) -> dict[int, datetime]:
        """When each shard was committed, by the storage's clock, with one listing; indices in order."""
        path = self.path("commits")
        self.fs.invalidate_cache(path)
        try:
            found = self.fs.ls(path, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        matches = ((MARKER.fullmatch(one["name"].rpartition("/")[2]), one) for one in found)
        return dict(sorted((int(match[1]), modified(one)) for match, one in matches if match))

    def modified(self, name: str) -> datetime | None:
        """When a file was written, by the storage's clock; None if there is none."""
        self.fs.invalidate_cache(self.root)
        try:
            return modified(self.fs.info(self.path(name)))
        except FileNotFoundError:
            return None

    def read_marker(self, index: int) -> dict[str, Any]:
        """The commit marker of one shard."""
        marker: dict[str, Any] = json.loads(self.read(marker_name(index)))
        return marker

    def passing(self, error: Exception) -> bool:
        """Whether an error may be gone by the next shard: of remote storage, and not for lack of rights, space or the place."""
        if _upload_gone(error):  # aborted by a rule of the storage against old ones: the next may live
            return True
        if isinstance(self.fs, (LocalFileSystem, MemoryFileSystem)) or isinstance(error, (UsageError, FileNotFoundError)):
            return False
        return not isinstance(error, PermissionError) and getattr(error, "errno", None) not in _LASTING

    def read_run(self) -> dict[str, Any] | None:
        """The run record; None if there is none.

        Raises:
            UsageError: If it is not a run record.
        """
        try:
            document = json.loads(self.read(RUN_RECORD))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UsageError(f"{self.url}: {RUN_RECORD} is not JSON ({one_line(error)})") from error
        if not (isinstance(document, dict) and all(isinstance(document.get(k), dict) for k in ("configuration", "plan"))):
            raise UsageError(f"{self.url}: {RUN_RECORD} is no run record; it must hold a configuration and a plan")
        return document

    def check_there(self) -> None:
        """Raises FileNotFoundError if a run was started here and its record is gone, as where somebody has removed the output."""
        if self.fingerprint is None:
            return
        path = self.path(RUN_RECORD)
        self.fs.invalidate_cache(path)
        try:
            self.fs.info(path)  # exists() of many file systems takes any trouble for a no
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(f"output.url {self.url} was removed during the run: {RUN_RECORD} is gone") from error

    def start_run(self, record: RunRecord) -> None:
        """Writes the run record if there is none, else checks that it is of the same run.

        Any number of processes may call this at once.

        Raises:
            UsageError: If the corpus is of another configuration; the message names what differs.
        """
        new = record.document()
        if self.read_run() is None:
            self._check_markers(new["fingerprint"])
            text = json.dumps(new, indent=1, ensure_ascii=False) + "\n"
            try:
                publish_bytes(self.fs, self.path(RUN_RECORD), text.encode(), exclusive=True, sweep=False)
            except FileExistsError:  # another process was first, perhaps with something else
                self.fs.invalidate_cache(self.root)
        run = self.check_run(record)
        self.fingerprint = str(run.get("fingerprint"))
        self.versions = new["versions"]
        self.other_versions = differences(run.get("versions") or {}, new["versions"])

    def check_run(self, record: RunRecord) -> dict[str, Any]:
        """Checks that a run record, if there is one, is of the same run; returns it, or the new one.

        Raises:
            UsageError: If the corpus is of another configuration; the message names what differs.
        """
        new, old = record.document(), self.read_run()
        if old is None:
            self._check_markers(new["fingerprint"])
            return new
        found = differences(compared(old, record.excluded), compared(new, record.excluded))
        if found:
            raise UsageError(f"output.url {self.url} already holds a corpus of another configuration: {'; '.join(found)}")
        return old

    def _check_markers(self, fingerprint: str) -> None:
        """Of a corpus that has lost its run record: whether all of its shards are of this run. Reads every marker."""
        with ThreadPoolExecutor(_READERS) as readers:
            for index, other in readers.map(lambda index: (index, self._fingerprint(index)), sorted(self.committed())):
                if other != fingerprint:
                    raise UsageError(
                        f"output.url {self.url} has lost its {RUN_RECORD}, and {marker_name(index)} is of another run "
                        f"({other or 'it does not say which'}) than this one ({fingerprint}); allowed: the configuration that "
                        "the shards were made with, or another output.url"
                    )

    def _fingerprint(self, index: int) -> str | None:
        try:
            marker = self.read_marker(index)
        except ValueError as error:
            raise UsageError(f"{marker_name(index)} in {self.url} is damaged ({one_line(error)}); {REPAIR}") from error
        return marker.get("fingerprint") if isinstance(marker, dict) else None


def _upload_gone(error: BaseException) -> bool:
    """Whether S3 says that an upload, not the place it was meant for, is no more."""
    response = getattr(error.__cause__, "response", None)
    return isinstance(response, dict) and response.get("Error", {}).get("Code") == "NoSuchUpload"


def modified(found: dict[str, Any]) -> datetime:
    """When a listed file was written, under the names that file systems have for it."""
    given = next((found[name] for name in ("mtime", "LastModified", "last_modified", "updated", "created") if found.get(name)), 0)
    when = given if isinstance(given, datetime) else _parsed(given)
    return when if when.tzinfo else when.replace(tzinfo=timezone.utc)


def _parsed(given: Any) -> datetime:
    return datetime.fromisoformat(given) if isinstance(given, str) else datetime.fromtimestamp(float(given), timezone.utc)


def one_line(error: BaseException) -> str:
    """An exception in one line, without secrets in it."""
    return hide(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
