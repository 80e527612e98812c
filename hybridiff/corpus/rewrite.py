"""Regenerating rows of a committed shard: the others, and their images, are copied as they are."""

import logging
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq

from hybridiff.corpus.layout import lease_of, marker_counts, marker_name, metadata_name, tar_name
from hybridiff.corpus.reader import CountedFile, damaged, differs, read_samples, reading
from hybridiff.corpus.shard import Result, ShardWriter
from hybridiff.secrets import one_line
from hybridiff.storage.folder import parse_json
from hybridiff.storage.lease import LeaseLost

_log = logging.getLogger(__name__)
_ROWS = 64  # in memory


class ShardRewriter(ShardWriter):
    """Writes a committed shard again with some rows regenerated.

    The old marker is removed once everything that replaces the shard is ready. If storage fails after that and the old files are
    still intact, the marker is restored. A shard whose writer is killed in between, or that is half replaced, is not committed:
    the next run without --retry_failed generates all of it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._new: dict[str, tuple[Result, bytes | None, str | None]] = {}
        self._old_marker = b""

    def write(self, result: Result, encoded: bytes | None = None, sha256: str | None = None) -> None:
        """Keeps the new result of one of the shard's rows until ``commit``."""
        self._new[result.sample.key] = result, encoded, sha256

    def commit(self, timings: dict[str, Any]) -> dict[str, Any]:
        """Merges old and new rows in plan order, and commits.

        Raises:
            ShardDamaged: the old files are not what their marker says. They stay as they are.
        """
        self._merge()
        return super().commit({**timings, "group_s": None})  # a few rows say nothing of the rate

    def _publish(self, timings: dict[str, Any]) -> dict[str, Any]:
        try:
            self.corpus.remove(marker_name(self.index))
            self.still_ours()  # before anything of a shard is replaced that a new owner of its lease makes whole
            return super()._publish(timings)
        except LeaseLost:
            raise
        except Exception:
            self._restore_marker()
            raise

    def _restore_marker(self) -> None:
        """Restores the old marker if the old files are intact, once nothing more can be published."""
        self.discard()
        index, marker = self.index, parse_json(self._old_marker)
        try:
            if self.corpus.is_committed(lease_of(index)):  # with the new marker, though what followed has failed
                return
            found = [differs(self.corpus, name, expected) for name, expected in marker["files"].items()]
            if not any(found):
                self.still_ours()
                self.corpus.publish(marker_name(index), self._old_marker)
                return
        except Exception as error:  # the error that has led here is raised
            found = [one_line(error)]
        _log.warning("shard %d is not committed any more; the next run without --retry_failed generates it: %s", index, found)

    def _merge(self) -> None:
        """Copies the old shard with the new rows in their places, and checks what was read against the marker."""
        corpus, index = self.corpus, self.index
        with reading(corpus, index, marker_name(index)):
            self._old_marker = corpus.read(marker_name(index))
            marker = parse_json(self._old_marker)
            marker_counts(marker, index)
        table, tar = metadata_name(index), tar_name(index)
        with reading(corpus, index, table), corpus.fs.open(corpus.path(table), "rb") as handle:
            counted = CountedFile(handle)
            counted.drain()
            self._check(table, counted, marker)
            handle.seek(0)
            rows = self._rows_of(handle)
            with reading(corpus, index, tar), corpus.fs.open(corpus.path(tar), "rb") as images:
                counted = CountedFile(images)
                self._copy(rows, counted)
                counted.drain()
                self._check(tar, counted, marker)

    def _rows_of(self, handle: Any) -> Iterator[dict[str, Any]]:
        for batch in pq.ParquetFile(handle).iter_batches(_ROWS):  # images may lie inside
            yield from batch.to_pylist()

    def _copy(self, rows: Iterator[dict[str, Any]], tar: CountedFile) -> None:
        samples = read_samples(tar)  # type: ignore[arg-type]
        for row in rows:
            key, files = next(samples, ("", {})) if row["status"] == "ok" else (row["key"], {})
            if key != row["key"]:
                raise damaged(self.corpus, tar_name(self.index), f"it holds {key!r} where {row['key']!r} belongs")
            if key in self._new:
                super().write(*self._new.pop(key))
            else:
                self._add(row, files)
        assert not self._new, f"shard {self.index} has no rows {list(self._new)}"

    def _check(self, name: str, counted: CountedFile, marker: dict[str, Any]) -> None:
        if reason := counted.differs(marker["files"][name]):
            raise damaged(self.corpus, name, reason)
