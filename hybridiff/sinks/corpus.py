"""A corpus: a directory at any fsspec url, its names, its commit markers and its run record."""

import errno
import hashlib
import json
import re
import secrets
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from hybridiff.config import UsageError
from hybridiff.secrets import hide, redact
from hybridiff.sinks.publish import Publication, publish_bytes, publishing
from hybridiff.storage.patience import be_patient, patient

RUN_RECORD = "run.json"
REPAIR = "run jobs/verify.py --repair, then generate.py without --retry_failed"  # what to do about a damaged shard
_MARKER = re.compile(r"(\d{5,})\.json")
_SMALL_FILES = re.compile(r"claims|lock(-\d+-of-\d+)?")  # folders
_LEFTOVER = re.compile(r"\.probe-[0-9a-f]{16}|\..+\.[0-9a-f]{16}\.tmp")
_DEAD = timedelta(minutes=10)  # of small files that should have been renamed at once
_READERS = 16  # small files read at once: remote ones are all waiting
_LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_SHOWN = 80  # characters of a value in a message


@dataclass(frozen=True)
class RunRecord:
    """What a corpus is made of: written once, compared by every later run.

    Args:
        configuration: Nested options; secrets are taken out before anything is written or compared.
        plan: ``rows``, ``shards`` and ``content``.
        excluded: Dotted names of options, or of whole sections, that the content does not depend on.
        versions: Of packages.
        hardware: What it ran on.
    """

    configuration: dict[str, Any]
    plan: dict[str, Any]
    excluded: frozenset[str] = frozenset()
    versions: dict[str, Any] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The contents of run.json."""
        configuration = _plain(redact(self.configuration))
        identity = {"configuration": without(configuration, self.excluded), "plan": _plain(self.plan)}
        canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return {
            "configuration": configuration,
            "plan": identity["plan"],
            "fingerprint": hashlib.sha256(canonical.encode()).hexdigest(),
            "versions": _plain(self.versions),
            "hardware": _plain(self.hardware),
        }


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
        return {int(match[1]) for match in map(_MARKER.fullmatch, self.names("commits")) if match}

    def commit_times(self) -> dict[int, datetime]:
        """When each shard was committed, by the storage's clock, with one listing; indices in order."""
        path = self.path("commits")
        self.fs.invalidate_cache(path)
        try:
            found = self.fs.ls(path, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        matches = ((_MARKER.fullmatch(one["name"].rpartition("/")[2]), one) for one in found)
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
        """Writes and removes a small file.

        Raises:
            UsageError: If that fails, whatever the reason.
        """
        path = self.path(f".probe-{secrets.token_hex(8)}")
        try:
            publish_bytes(self.fs, path, b"probe", sweep=False)
            with suppress(Exception):
                self._sweep(_modified(self.fs.info(path)) - _DEAD)
            self.fs.rm_file(path)
        except Exception as error:  # storage clients raise types of their own that are no OSError
            raise UsageError(f"output.url is {self.url}: it is not writable ({_one_line(error)})") from error

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
        be_patient(self.fs)

    def check_run(self, record: RunRecord) -> None:
        """Checks that a run record, if there is one, is of the same run.

        Raises:
            UsageError: If the corpus is of another configuration; the message names what differs.
        """
        new = record.document()
        old = self.read_run() or new
        found = differences(_compared(old, record.excluded), _compared(new, record.excluded))
        if found:
            raise UsageError(f"output.url {self.url} already holds a corpus of another configuration: {'; '.join(found)}")


def marker_counts(marker: Any, index: int) -> dict[str, int]:
    """``rows``, ``ok`` and ``failed`` of a marker.

    Raises:
        ValueError: If it is not the marker of this shard, or not a whole one.
    """
    if not isinstance(marker, dict) or marker.get("shard") != index:
        raise ValueError(f"not the marker of shard {index}")
    files = marker.get("files")
    if not isinstance(files, dict) or files.keys() != {tar_name(index), metadata_name(index)}:
        raise ValueError("does not name the shard's two files")
    if not all(isinstance(file, dict) and file.keys() >= {"bytes", "sha256"} for file in files.values()):
        raise ValueError("does not hold the bytes and the SHA-256 of its files")
    counts = {name: marker[name] for name in ("rows", "ok", "failed") if type(marker.get(name)) is int}
    if len(counts) < 3 or counts["rows"] != counts["ok"] + counts["failed"]:
        raise ValueError("does not count rows, ok and failed")
    return counts


def tar_name(index: int) -> str:
    """Name of a shard's images inside the corpus."""
    return f"images/{index:05d}.tar"


def metadata_name(index: int) -> str:
    """Name of a shard's Parquet file inside the corpus."""
    return f"metadata/{index:05d}.parquet"


def marker_name(index: int) -> str:
    """Name of a shard's commit marker inside the corpus."""
    return f"commits/{index:05d}.json"


def stats_name(index: int) -> str:
    """Name of a shard's timings inside the corpus."""
    return f"stats/{index:05d}.json"


def without(options: dict[str, Any], excluded: Iterable[str], prefix: str = "") -> dict[str, Any]:
    """Nested options without those of these dotted names."""
    names = frozenset(excluded)
    kept = {name: value for name, value in options.items() if prefix + name not in names}
    return {name: without(value, names, f"{prefix}{name}.") if isinstance(value, dict) else value for name, value in kept.items()}


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """What differs between two nested dicts, each as "dotted.name is <old> there, <new> here"."""
    found: list[str] = []
    for name in sorted(old.keys() | new.keys()):
        there, here = old.get(name), new.get(name)
        if isinstance(there, dict) and isinstance(here, dict):
            found += differences(there, here, f"{prefix}{name}.")
        elif (name in old) != (name in new) or there != here:
            there_text = _shown(there) if name in old else "absent"
            here_text = _shown(here) if name in new else "absent"
            found.append(f"{prefix}{name} is {there_text} there, {here_text} here")
    return found


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


def _compared(document: dict[str, Any], excluded: frozenset[str]) -> dict[str, Any]:
    plan = {f"plan.{name}": value for name, value in document["plan"].items()}
    return without(document["configuration"], excluded) | plan


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _one_line(error: BaseException) -> str:
    return hide(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
