"""Large prompt tables: files of Parquet, read by footers and row groups, never whole."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from hybridiff.config import DataConfig
from hybridiff.errors import UsageError
from hybridiff.prompts.kinds import cast, is_nanoseconds, typed_values
from hybridiff.prompts.rows import own_rows
from hybridiff.prompts.tables import CELL_FORMATS, Source, Table, reported
from hybridiff.prompts.unreadable import Faults, replace_unreadable

BATCH_ROWS = 1 << 16
BATCH_BYTES = 1 << 26
BUFFER_BYTES = 1 << 20
LINE, USER = "line", "user"  # columns of a copy: the line in the file copied, and the user's columns as one JSON object


@dataclass(frozen=True)
class Part:
    """A file's rows, in Parquet: the file itself, or the copy of a text format.

    Args:
        source: The file.
        files: File system of what is read.
        path: Of what is read.
        slug: What keys are made from if the file has none.
        data: Names of the columns of what is read.
        images: Images per row.
        rows: In all.
        kinds: Types of the user's columns.
        is_copy: Whether what is read is a copy.
        makes_keys: Whether the file brings no keys; a copy holds them all the same.
    """

    source: Source
    files: fsspec.AbstractFileSystem
    path: str
    slug: str
    data: DataConfig
    images: int
    rows: int
    kinds: dict[str, pa.DataType]
    is_copy: bool
    makes_keys: bool

    @contextmanager
    def open(self) -> Iterator[pq.ParquetFile]:
        """The Parquet file; its footer is read at once."""
        with open_parquet(self.source.name, self.files, self.path) as file:
            if file.metadata.num_rows != self.rows:
                raise UsageError(f"{self.source.name}: has {file.metadata.num_rows} rows; allowed: {self.rows}, as when planned")
            yield file

    def batches(self, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
        """All rows of some columns, in pieces, each with the position of its first row."""
        first = 0
        with self.open() as file, reported(self.source.name, "is not a readable Parquet file"):
            for batch in file.iter_batches(batch_rows(file), columns=list(columns)):
                yield first, pa.Table.from_batches([batch])
                first += batch.num_rows

    def read(self, first: int, count: int) -> tuple[pa.Table, dict[str, pa.ChunkedArray], Faults]:
        """Rows from ``first`` on: key, prompt, negative_prompt and seed, checked; the user's columns, typed; what is wrong."""
        with self.open() as file, reported(self.source.name, "is not a readable Parquet file"):
            rows = _rows(file, first, count)
            for index, field in enumerate(rows.schema):  # nanoseconds that Python does not hold are no fault
                if is_nanoseconds(field.type) and field.name in self.kinds:
                    rows = rows.set_column(index, field.name, rows[field.name].cast(self.kinds[field.name]))
            rows, faults = replace_unreadable(rows)
        return own_rows(self.table(first, rows), self.data, self.slug, self.images, first), self.user(rows), faults

    def table(self, first: int, rows: pa.Table) -> Table:
        """Some rows as the checks take them."""
        numbers = rows[LINE].to_pylist() if self.is_copy else range(first + 1, first + rows.num_rows + 1)
        return Table(self.source, dict(zip(rows.column_names, rows.columns, strict=True)), numbers)

    def place(self, row: int) -> str:
        """File and line (Parquet: row) of row ``row``, counted from 0, for messages."""
        with self.open() as file:
            return self.table(row, _rows(file, row, 1)).place(0)

    def user(self, rows: pa.Table) -> dict[str, pa.ChunkedArray]:
        """The user's columns of some rows, in the types of ``kinds``."""
        if not self.is_copy:
            return {name: cast(rows[name], kind) for name, kind in self.kinds.items()}
        objects = [json.loads(text) for text in rows[USER].to_pylist()]
        is_cell = self.source.suffix in CELL_FORMATS
        return {name: typed_values([one.get(name) for one in objects], is_cell, kind) for name, kind in self.kinds.items()}

    def user_batches(self, name: str) -> Iterator[pa.ChunkedArray]:
        """A user's column in pieces."""
        part = replace(self, kinds={name: self.kinds[name]})
        for _, rows in self.batches([USER if self.is_copy else name]):
            yield part.user(rows)[name]


@contextmanager
def open_parquet(name: str, files: fsspec.AbstractFileSystem, path: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file; ``name`` is what messages call it."""
    if isinstance(files, LocalFileSystem):
        # buffers keep a huge row group out of memory
        with reported(name, "is not a readable Parquet file"):
            local = pq.ParquetFile(path, buffer_size=BUFFER_BYTES)
        with local:
            yield local
        return
    with reported(name, "cannot be read"):
        handle = files.open(path, "rb")
    with handle:
        with reported(name, "is not a readable Parquet file"):
            remote = pq.ParquetFile(handle, pre_buffer=True)
        yield remote


def batch_rows(file: pq.ParquetFile) -> int:
    """How many rows to hold at once: fewer where they are long."""
    groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
    longest = max((group.total_byte_size / group.num_rows for group in groups if group.num_rows), default=0.0)
    return int(max(1, min(BATCH_ROWS, BATCH_BYTES / max(longest, 1.0))))


def _rows(file: pq.ParquetFile, first: int, count: int) -> pa.Table:
    """Rows from ``first`` on, from the row groups that hold them."""
    found: list[Any] = []
    start = 0
    for group in range(file.metadata.num_row_groups):
        stop = start + file.metadata.row_group(group).num_rows
        if start < first + count and first < stop:
            found += _slices(file, group, max(first - start, 0), min(first + count, stop) - start)
        start = stop
    return pa.Table.from_batches(found, schema=file.schema_arrow)


def _slices(file: pq.ParquetFile, group: int, first: int, stop: int) -> Iterator[pa.RecordBatch]:
    start = 0
    for batch in file.iter_batches(batch_rows(file), row_groups=[group]):
        if first < start + batch.num_rows:
            piece = batch.slice(max(first - start, 0))
            yield piece.slice(0, stop - start - max(first - start, 0))
        start += batch.num_rows
        if start >= stop:
            return
