"""A committed shard of which some rows are drawn again."""

from typing import Any

import pyarrow.parquet as pq

from hybridiff.sinks.corpus import marker_name, metadata_name, tar_name
from hybridiff.sinks.results import Result
from hybridiff.sinks.shard import ShardWriter, read_samples

_ROWS = 64  # in memory


class ShardAgain(ShardWriter):
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
        """Puts old and new together in plan order, and commits."""
        corpus, index = self.corpus, self.index
        with (
            corpus.fs.open(corpus.path(metadata_name(index)), "rb") as table,
            corpus.fs.open(corpus.path(tar_name(index)), "rb") as tar,
        ):
            samples = read_samples(tar)
            for batch in pq.ParquetFile(table).iter_batches(_ROWS):  # images may lie inside
                for row in batch.to_pylist():
                    files = next(samples)[1] if row["status"] == "ok" else {}
                    if row["key"] in self._new:
                        super().write(*self._new[row["key"]])
                    else:
                        self._add(row, files)
        return super().commit(timings)

    def _retract(self) -> None:
        self.corpus.fs.rm_file(self.corpus.path(marker_name(self.index)))
