"""A corpus: a directory at any fsspec url, its commit markers and its run record."""

import errno
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from datetime import datetime, timedelta, timezone
from typing import Any

import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from hybridiff.config import UsageError
from hybridiff.secrets import hide, redact
from hybridiff.sinks.names import MARKER, RUN_RECORD, marker_counts, marker_name, metadata_name
from hybridiff.sinks.publish import Publication, publish_bytes, publishing
from hybridiff.sinks.record import RunRecord, compared, differences
from hybridiff.storage.patience import patient

REPAIR = "run jobs/verify.py --repair, then generate.py without --retry_failed"  # what to do about a damaged shard
_SMALL_FILES = re.compile(r"claims|lock(-\d+-of-\d+)?")  # folders
_LEFTOVER = re.compile(r"\.probe-[0-9a-f]{16}|\..+\.[0-9a-f]{16}\.tmp")
_DEAD = timedelta(minutes=10)  # of small files that should have been renamed at once
_READERS = 16  # small files read at once: remote ones are all waiting
_LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Corpus:
    """The directory of a corpus.

    Args:
        url: A path or any fsspec url.

    Raises:
        UsageError: If no file system is known, or installed, for the url.
    """

    def __init__(self, url: str) -> None:
        self.url: str = redact(url)
        try:
            self.fs, root = patient(*url_to_fs(url))
        except Exception as error:  # a file system's own mistakes have no common type
            raise UsageError(f"output.url is {self.url}: no file system for it ({_one_line(error)})") from error
        self.root: str = root.rstrip("/")
        self._started = False

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
        return dict(sorted((int(match[1]), _modified(one)) for match, one in matches if match))

    def modified(self, name: str) -> datetime | None:
        """When a file was written, by the storage's clock; None if there is none."""
        self.fs.invalidate_cache(self.root)
        try:
            return _modified(self.fs.info(self.path(name)))
        except FileNotFoundError:
            return None

    def read_marker(self, index: int) -> dict[str, Any]:
        """The commit marker of one shard."""
        marker: dict[str, Any] = json.loads(self.read(marker_name(index)))
        return marker

    def totals(self, indices: Iterable[int]) -> dict[str, int]:
        """The sums of ``rows``, ``ok`` and ``failed`` over the markers of these shards.

        Raises:
            UsageError: If one of them is damaged.
        """
        with ThreadPoolExecutor(_READERS) as readers:
            counts = list(readers.map(self._counts, sorted(indices)))
        return {name: sum(count[name] for count in counts) for name in ("rows", "ok", "failed")}

    def _counts(self, index: int) -> dict[str, int]:
        try:
            return marker_counts(self.read_marker(index), index)
        except ValueError as error:
            raise UsageError(f"{marker_name(index)} in {self.url} is damaged ({_one_line(error)}); {REPAIR}") from error

    def passing(self, error: Exception) -> bool:
        """Whether an error may be gone by the next shard: of remote storage, and not for lack of rights, space or the place."""
        if _upload_gone(error):  # aborted by a rule of the storage against old ones: the next may live
            return True
        if isinstance(self.fs, (LocalFileSystem, MemoryFileSystem)) or isinstance(error, (UsageError, FileNotFoundError)):
            return False
        return not isinstance(error, PermissionError) and getattr(error, "errno", None) not in _LASTING

    def with_failures(self, indices: Iterable[int]) -> dict[int, int]:
        """Those of these committed shards that have failed rows, in order, and how many.

        Raises:
            UsageError: If a marker is damaged.
        """
        indices = sorted(indices)
        with ThreadPoolExecutor(_READERS) as readers:
            counts = list(readers.map(self._counts, indices))
        return {index: count["failed"] for index, count in zip(indices, counts, strict=True) if count["failed"]}

    def failed_keys(self, index: int) -> frozenset[str]:
        """The keys of the failed rows of a committed shard.

        Raises:
            UsageError: If its rows are damaged or missing.
        """
        try:
            with self.fs.open(self.path(metadata_name(index)), "rb") as handle:
                rows = pq.read_table(handle, columns=["key", "status"]).to_pylist()
        except (ValueError, FileNotFoundError) as error:
            self.check_there()
            raise UsageError(f"{metadata_name(index)} in {self.url} is damaged ({_one_line(error)}); {REPAIR}") from error
        return frozenset(row["key"] for row in rows if row["status"] == "error")

    def check_writable(self) -> None:
        """Writes and removes a small file; on local disks one without a name, of which a kill leaves nothing.

        Raises:
            UsageError: If that fails, whatever the reason.
        """
        try:
            now = self._probe()
            with suppress(Exception):
                self._sweep(now - _DEAD)
        except Exception as error:  # storage clients raise types of their own that are no OSError
            raise UsageError(f"output.url is {self.url}: it is not writable ({_one_line(error)})") from error

    def _probe(self) -> datetime:
        """Writes something, and returns when by the storage's clock."""
        if isinstance(self.fs, LocalFileSystem):
            self.fs.makedirs(self.root, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root) as file:
                file.write(b"probe")
                file.flush()
                return datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, timezone.utc)
        path = self.path(f".probe-{secrets.token_hex(8)}")
        publish_bytes(self.fs, path, b"probe", sweep=False)
        now = _modified(self.fs.info(path))
        self.fs.rm_file(path)
        return now

    def _sweep(self, before: datetime) -> None:
        """Removes small files that killed processes left: those of names that several processes may publish at once.

        Such a file is written and renamed in a moment; one from before ``before``, by the storage's clock, is nobody's any more.
        """
        folders = [name for name in self.names("") if _SMALL_FILES.fullmatch(name)]
        for folder in ("", *folders):
            path = self.path(folder) if folder else self.root
            for found in self.fs.ls(path, detail=True):
                name = found["name"].rpartition("/")[2]
                if _LEFTOVER.fullmatch(name) and found["type"] == "file" and _modified(found) < before:
                    with suppress(FileNotFoundError):  # by another process of the same job
                        self.fs.rm_file(found["name"])

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
            raise UsageError(f"{self.url}: {RUN_RECORD} is not JSON ({_one_line(error)})") from error
        if not (isinstance(document, dict) and all(isinstance(document.get(k), dict) for k in ("configuration", "plan"))):
            raise UsageError(f"{self.url}: {RUN_RECORD} is no run record; it must hold a configuration and a plan")
        return document

    def check_there(self) -> None:
        """Raises FileNotFoundError if a run was started here and its record is gone, as where somebody has removed the output."""
        path = self.path(RUN_RECORD)
        if self._started:
            self.fs.invalidate_cache(path)
            if not self.fs.exists(path):
                raise FileNotFoundError(f"output.url {self.url} was removed during the run: {RUN_RECORD} is gone")

    def start_run(self, record: RunRecord) -> None:
        """Writes the run record if there is none, else checks that it is of the same run.

        Any number of processes may call this at once.

        Raises:
            UsageError: If the corpus is of another configuration; the message names what differs.
        """
        new = record.document()
        if self.read_run() is None:
            text = json.dumps(new, indent=1, ensure_ascii=False) + "\n"
            try:
                publish_bytes(self.fs, self.path(RUN_RECORD), text.encode(), exclusive=True, sweep=False)
            except FileExistsError:  # another process was first, perhaps with something else
                self.fs.invalidate_cache(self.root)
        self.check_run(record)
        self._started = True

    def check_run(self, record: RunRecord) -> None:
        """Checks that a run record, if there is one, is of the same run.

        Raises:
            UsageError: If the corpus is of another configuration; the message names what differs.
        """
        new = record.document()
        old = self.read_run() or new
        found = differences(compared(old, record.excluded), compared(new, record.excluded))
        if found:
            raise UsageError(f"output.url {self.url} already holds a corpus of another configuration: {'; '.join(found)}")


def _upload_gone(error: BaseException) -> bool:
    """Whether S3 says that an upload, not the place it was meant for, is no more."""
    response = getattr(error.__cause__, "response", None)
    return isinstance(response, dict) and response.get("Error", {}).get("Code") == "NoSuchUpload"


def _modified(found: dict[str, Any]) -> datetime:
    """When a listed file was written, under the names that file systems have for it."""
    given = next((found[name] for name in ("mtime", "LastModified", "last_modified", "updated", "created") if found.get(name)), 0)
    when = given if isinstance(given, datetime) else _parsed(given)
    return when if when.tzinfo else when.replace(tzinfo=timezone.utc)


def _parsed(given: Any) -> datetime:
    return datetime.fromisoformat(given) if isinstance(given, str) else datetime.fromtimestamp(float(given), timezone.utc)


def _one_line(error: BaseException) -> str:
    return hide(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
