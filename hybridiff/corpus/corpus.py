"""A corpus: the commit markers in its directory, and its run record."""

import json
from datetime import datetime
from functools import partial
from typing import Any

from hybridiff.corpus.layout import MARKER, RUN_RECORD, marker_name
from hybridiff.corpus.record import RunRecord, check_fingerprint, check_whole, compared, differences
from hybridiff.errors import UsageError
from hybridiff.secrets import one_line
from hybridiff.storage.folder import Folder, modified, read_each
from hybridiff.storage.publish import publish_bytes

REPAIR = "run jobs/verify.py --repair, then generate.py without --retry_failed"  # what to do about a damaged shard


class Corpus(Folder):
    """A corpus in its directory.

    Args:
        url: A path or any fsspec url.

    Attributes:
        fingerprint: Of the run that was started here; None before. Likewise:
        versions: Of packages that it runs with.
        other_versions: How these differ from those that the run record holds.

    Raises:
        UsageError: If no file system is known, or installed, for the url.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.fingerprint: str | None = None
        self.versions: dict[str, Any] = {}
        self.other_versions: list[str] = []

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

    def read_marker(self, index: int) -> dict[str, Any]:
        """The commit marker of one shard."""
        marker: dict[str, Any] = json.loads(self.read(marker_name(index)))
        return marker

    def read_run(self) -> dict[str, Any] | None:
        """The run record; None if there is none.

        Raises:
            UsageError: If it is not a run record, or a damaged one.
        """
        try:
            document = json.loads(self.read(RUN_RECORD))
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
        self.fingerprint = str(run["fingerprint"])
        self.versions = new["versions"]
        self.other_versions = differences(run.get("versions") or {}, new["versions"])

    def check_run(self, record: RunRecord) -> dict[str, Any]:
        """Checks that a run record, if there is one, is of the same run; returns it, or the new one.

        Raises:
            UsageError: If the corpus is of another configuration; the message names what differs. If the record is damaged.
        """
        new, old = record.document(), self.read_run()
        if old is None:
            self._check_markers(new["fingerprint"])
            return new
        self._check_alike(old, new, record.excluded)
        self._check_fingerprint(old, record.excluded)
        return old

    def check_configuration(self, record: RunRecord) -> None:
        """The part of ``check_run`` that needs no plan: checks the options of a run record, if there is one.

        Raises:
            UsageError: If the corpus is of another configuration; the message names what differs. If the record is damaged.
        """
        if (old := self.read_run()) is not None:
            self._check_alike(old | {"plan": {}}, record.document() | {"plan": {}}, record.excluded)
            self._check_fingerprint(old, record.excluded)

    def _check_alike(self, old: dict[str, Any], new: dict[str, Any], excluded: frozenset[str]) -> None:
        found = differences(compared(old, excluded), compared(new, excluded))
        if found:
            raise UsageError(f"output.url {self.url} already holds a corpus of another configuration: {'; '.join(found)}")

    def _check_fingerprint(self, run: dict[str, Any], excluded: frozenset[str]) -> None:
        try:
            check_fingerprint(run, excluded)
        except ValueError as error:
            raise UsageError(f"{self.url}: {RUN_RECORD} is {error}") from error

    def _check_markers(self, fingerprint: str) -> None:
        """Of a corpus that has lost its run record: whether all of its shards are of this run. Reads every marker."""
        read_each(partial(self._check_marker, fingerprint), sorted(self.committed()))

    def _check_marker(self, fingerprint: str, index: int) -> None:
        try:
            marker = self.read_marker(index)
        except ValueError as error:
            raise UsageError(f"{marker_name(index)} in {self.url} is damaged ({one_line(error)}); {REPAIR}") from error
        other = marker.get("fingerprint") if isinstance(marker, dict) else None
        if other != fingerprint:
            raise UsageError(
                f"output.url {self.url} has lost its {RUN_RECORD}, and {marker_name(index)} is of another run "
                f"({other or 'it does not say which'}) than this one ({fingerprint}); allowed: the configuration that "
                "the shards were made with, or another output.url"
            )
