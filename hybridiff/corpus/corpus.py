"""A corpus: the commit markers in its directory, and its run record."""

import json
from datetime import datetime
from functools import partial
from typing import Any

from hybridiff.corpus.layout import LEASES, MARKER, RUN_RECORD, marker_name
from hybridiff.corpus.record import RunRecord, check_fingerprint, check_whole, compared, differences
from hybridiff.errors import StorageError, UsageError
from hybridiff.secrets import one_line
from hybridiff.storage.folder import Folder, modified, only_os_errors, parse_json, read_each
from hybridiff.storage.lease_file import live_leases

REPAIR = "run hybridiff verify --repair, then hybridiff generate without --retry_failed"  # what to do about a damaged shard


class Corpus(Folder):
    """A corpus in its directory.

    Args:
        url: local path or fsspec url, without credentials
        option: the option that names it, for messages

    Attributes:
        fingerprint: fingerprint of the run that was started here; None before.
        versions: versions of packages that it runs with.
        other_versions: differences between these and those of the run record.

    Raises:
        UsageError: no file system is known, or installed, for the url, or it holds credentials.
    """

    def __init__(self, url: str, option: str = "output.url") -> None:
        super().__init__(url, option)
        self.fingerprint: str | None = None
        self.versions: dict[str, Any] = {}
        self.other_versions: list[str] = []

    def committed(self) -> set[int]:
        """Indices of the shards that have a commit marker."""
        return {int(match[1]) for match in map(MARKER.fullmatch, self.names("commits")) if match}

    def is_committed(self, name: str) -> bool:
        """Whether the shard of a lease's name has a commit marker."""
        try:
            self.read(marker_name(int(name)))
        except FileNotFoundError:
            return False
        return True

    def commit_times(self) -> dict[int, datetime]:
        """When each shard was committed, by the storage's clock, with one listing; indices in order."""
        path = self.path("commits")
        self.fs.invalidate_cache(path)
        try:
            with only_os_errors(path):
                found = self.fs.ls(path, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        matches = ((MARKER.fullmatch(one["name"].rpartition("/")[2]), one) for one in found)
        return dict(sorted((int(match[1]), modified(one)) for match, one in matches if match))

    def read_marker(self, index: int) -> dict[str, Any]:
        """The commit marker of one shard."""
        marker: dict[str, Any] = parse_json(self.read(marker_name(index)))
        return marker

    def read_run(self) -> dict[str, Any] | None:
        """The run record; None if there is none.

        Raises:
            UsageError: it is no run record, or a damaged one.
        """
        try:
            document = parse_json(self.read(RUN_RECORD))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:
            raise UsageError(f"{self.url}: {RUN_RECORD} is not JSON ({one_line(error)})") from error
        try:
            check_whole(document)
        except ValueError as error:
            raise UsageError(f"{self.url}: {RUN_RECORD} is {error}") from error
        found: dict[str, Any] = document
        return found

    def check_there(self) -> None:
        """Makes sure that a run that was started here still has the corpus.

        Raises:
            FileNotFoundError: its record is gone, as where somebody has removed the output.
            StorageError: the record is of another run, which was started before anything of this one was committed.
        """
        if self.fingerprint is None:
            return
        try:
            run = parse_json(self.read(RUN_RECORD))
            check_whole(run)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(f"{self.option} {self.url} was removed during the run: {RUN_RECORD} is gone") from error
        except ValueError:  # damaged: the next run and verify report it
            return
        if run["fingerprint"] != self.fingerprint:
            raise StorageError(f"{self.option} {self.url} is a run's of another configuration by now ({run['fingerprint']})")

    def start_run(self, record: RunRecord) -> None:
        """Writes the run record if there is none, else checks that it is of the same run.

        A record of another run of which nothing was committed, and that no live process works on, is replaced: such a run failed
        before it made anything. Any number of processes may call this at once.

        Raises:
            UsageError: the corpus is of another configuration; the message names what differs.
        """
        new, old = record.document(), self.read_run()
        if old is None or self._is_abandoned(old, record):
            self._check_markers(new["fingerprint"])
            text = json.dumps(new, indent=1, ensure_ascii=False) + "\n"
            try:
                self.publish(RUN_RECORD, text.encode(), exclusive=old is None)
            except FileExistsError:  # another process was first, perhaps with something else
                self.fs.invalidate_cache(self.root)
        run = self.read_run() or new
        self._check_same(run, record)
        self.fingerprint = str(run["fingerprint"])
        self.versions = new["versions"]
        self.other_versions = differences(run.get("versions") or {}, new["versions"])

    def check_run(self, record: RunRecord) -> dict[str, Any]:
        """Checks that a run record, if there is one, is of the same run or may be replaced; returns it, or the new one.

        Raises:
            UsageError: the corpus is of another configuration; the message names what differs. Or the record is damaged.
        """
        new, old = record.document(), self.read_run()
        if old is None or self._is_abandoned(old, record):
            self._check_markers(new["fingerprint"])
            return new
        self._check_same(old, record)
        return old

    def check_configuration(self, record: RunRecord) -> None:
        """The part of ``check_run`` that needs no plan: checks the options of a run record, if there is one.

        Raises:
            UsageError: the corpus is of another configuration; the message names what differs. Or the record is damaged.
        """
        if (old := self.read_run()) is not None and not self._is_abandoned(old, record):
            self._check_alike(old | {"plan": {}}, record.document() | {"plan": {}}, record)
            self._check_fingerprint(old, record.excluded)

    def _is_abandoned(self, old: dict[str, Any], record: RunRecord) -> bool:
        """Whether a record is of another run, of which there is nothing else, and which no live process works on."""
        if compared(old, record.excluded) == compared(record.document(), record.excluded):
            return False
        return not self.committed() and not live_leases(self, LEASES)

    def _check_same(self, run: dict[str, Any], record: RunRecord) -> None:
        self._check_alike(run, record.document(), record)
        self._check_fingerprint(run, record.excluded)

    def _check_alike(self, old: dict[str, Any], new: dict[str, Any], record: RunRecord) -> None:
        found = differences(compared(old, record.excluded), compared(new, record.excluded))
        if record.describe_change is not None and old["plan"].get("content") != new["plan"].get("content"):
            found = [one for one in found if not one.startswith("plan.")]
            found.append(record.describe_change(old["plan"].get("table")))
        if found:
            raise UsageError(f"{self.option} {self.url} already holds a corpus of another configuration: {'; '.join(found)}")

    def _check_fingerprint(self, run: dict[str, Any], excluded: frozenset[str]) -> None:
        try:
            check_fingerprint(run, excluded)
        except ValueError as error:
            raise UsageError(f"{self.url}: {RUN_RECORD} is {error}") from error

    def _check_markers(self, fingerprint: str) -> None:
        """Checks that all shards of a corpus without a run record are of this run; reads every marker."""
        read_each(partial(self._check_marker, fingerprint), sorted(self.committed()))

    def _check_marker(self, fingerprint: str, index: int) -> None:
        try:
            marker = self.read_marker(index)
        except ValueError as error:
            raise UsageError(f"{marker_name(index)} in {self.url} is damaged ({one_line(error)}); {REPAIR}") from error
        other = marker.get("fingerprint") if isinstance(marker, dict) else None
        if other != fingerprint:
            raise UsageError(
                f"{self.option} {self.url} has lost its {RUN_RECORD}, and {marker_name(index)} is of another run "
                f"({other or 'it does not say which'}) than this one ({fingerprint}); allowed: the configuration that "
                f"the shards were made with, or another {self.option}"
            )
