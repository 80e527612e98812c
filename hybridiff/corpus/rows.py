"""The rows of a shard: as a Parquet file, and each as JSON beside its image."""

import json
import math
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hybridiff.corpus.corpus import Corpus
from hybridiff.storage.publish import Publication


class RowsFile:
    """The Parquet file of a shard.

    Args:
        corpus: Where it goes.
        name: Of the file inside the corpus.
        schema: Of its rows.
        most: Rows held in memory at once; None holds all until the commit.
        sweep: Whether what an earlier try left is removed first.
    """

    def __init__(self, corpus: Corpus, name: str, schema: pa.Schema, most: int | None, sweep: bool) -> None:
        self.count = self.failed = 0
        self._corpus, self._name, self._schema, self._most = corpus, name, schema, most
        self._sweep = sweep
        self._waiting: list[dict[str, Any]] = []
        self._handle: Publication | None = None
        self._file: pq.ParquetWriter | None = None

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row, under the schema's names."""
        self.count += 1
        self.failed += row["status"] == "error"
        self._waiting.append(row)
        if len(self._waiting) == self._most:
            self._flush()

    def close(self) -> None:
        """Writes the rest."""
        try:
            if self._waiting or self._file is None:
                self._flush()
            assert self._file is not None
            self._file.close()
        except BaseException:
            self.discard()
            raise

    def commit(self) -> Publication:
        """Publishes the file, once closed, and returns its handle."""
        assert self._handle is not None
        self._handle.commit()
        return self._handle

    def discard(self) -> None:
        """Gives the file up; without effect after ``commit``."""
        if self._handle is not None:
            self._handle.discard()

    def _flush(self) -> None:
        if self._handle is None:
            self._handle = Publication(self._corpus.fs, self._corpus.target(self._name), sweep=self._sweep)
        if self._file is None:
            self._file = pq.ParquetWriter(self._handle, self._schema)
        self._file.write_table(pa.Table.from_pylist(self._waiting, schema=self._schema))
        self._waiting.clear()


def row_json(row: dict[str, Any]) -> bytes:
    """A row as UTF-8 JSON; what JSON can't say becomes null (NaN, infinities) or text (dates, bytes)."""
    return json.dumps(_finite(row), ensure_ascii=False, default=str, allow_nan=False).encode()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
