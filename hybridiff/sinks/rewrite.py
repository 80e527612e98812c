"""A committed shard of which some rows are drawn again."""

import json
import tarfile
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq

from hybridiff.sinks.check import Counted, said
from hybridiff.sinks.corpus import REPAIR
from hybridiff.sinks.names import marker_counts, marker_name, metadata_name, tar_name
from hybridiff.sinks.results import Result
from hybridiff.sinks.samples import read_samples
from hybridiff.sinks.shard import ShardWriter

_ROWS = 64  # in memory


class ShardDamaged(RuntimeError):
    """A committed shard does not hold what its marker says, so nothing of it may be committed anew."""


class ShardRewriter(ShardWriter):
    """Writes a committed shard anew, its other rows and images as they are.

    The marker is taken away when all is ready to take its place: a shard caught in between is not committed, and is made again.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._new: dict[str, tuple[Result, bytes | None, str | None]] = {}

    def write(self, result: Result, encoded: bytes | None = None, sha256: str | None = None) -> None:
        """Takes the new result of one of the shard's rows."""
        self._new[result.sample.key] = result, encoded, sha256

    def commit(self, timings: dict[str, Any]) -> dict[str, Any]:
        """Puts old and new together in plan order, and commits.

        Raises:
            ShardDamaged: If the old files are not those that their marker vouches for. They stay as they are.
        """
        try:
            self._merge()
        except (ValueError, FileNotFoundError, EOFError, tarfile.TarError) as error:  # of readers on damaged data
            self.corpus.check_there()  # else the output was removed, which ends everything
            raise self._damaged(said(error)) from error
        return super().commit(timings)

    def _merge(self) -> None:
        """Copies the old shard with the new rows in their places, and checks what was read against the marker."""
        corpus, index = self.corpus, self.index
        marker = json.loads(corpus.read(marker_name(index)))
        marker_counts(marker, index)
        table, tar = metadata_name(index), tar_name(index)
        with corpus.fs.open(corpus.path(table), "rb") as handle:
            counted = Counted(handle)
            counted.drain()
            self._check(table, counted, marker)
            handle.seek(0)
            rows = self._rows_of(handle)
            with corpus.fs.open(corpus.path(tar), "rb") as images:
                counted = Counted(images)
                self._copy(rows, counted)
                counted.drain()
        self._check(tar, counted, marker)

    def _rows_of(self, handle: Any) -> Iterator[dict[str, Any]]:
        for batch in pq.ParquetFile(handle).iter_batches(_ROWS):  # images may lie inside
            yield from batch.to_pylist()

    def _copy(self, rows: Iterator[dict[str, Any]], tar: Counted) -> None:
        samples = read_samples(tar)  # type: ignore[arg-type]
        for row in rows:
            key, files = next(samples, ("", {})) if row["status"] == "ok" else (row["key"], {})
            if key != row["key"]:
                raise self._damaged(f"{tar_name(self.index)} holds {key!r} where {row['key']!r} belongs")
            if key in self._new:
                super().write(*self._new.pop(key))
            else:
                self._add(row, files)
        assert not self._new, f"shard {self.index} has no rows {list(self._new)}"

    def _check(self, name: str, counted: Counted, marker: dict[str, Any]) -> None:
        if differs := counted.differs(marker["files"][name]):
            raise self._damaged(f"{name}: {differs}")

    def _damaged(self, reason: str) -> ShardDamaged:
        return ShardDamaged(f"{reason}; {REPAIR}")

    def _retract(self) -> None:
        self.corpus.fs.rm_file(self.corpus.path(marker_name(self.index)))
