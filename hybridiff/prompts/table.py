"""A normalised table: few rows in memory, many in a Parquet file whose row groups match the shards."""

import json
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hybridiff.prompts.normalise import OWN_SCHEMA, Normalisation, Request, spooled

MEMORY_BYTES, MEMORY_ROWS = 32 << 20, 1 << 18  # of Arrow: tables beyond are not held in memory
GROUP_ROWS, GROUP_BYTES = 1 << 14, 1 << 26  # of a row group: as many shards as fit
_METADATA = b"hybridiff"
Opened = Callable[[pq.FileMetaData | None], AbstractContextManager[pq.ParquetFile]]


@dataclass(frozen=True)
class PromptTable:
    """The rows of all sources in one schema.

    Args:
        schema: names and types of the columns
        count: number of rows
        rows: reads rows, by first row and count
        content: identity of the rows and their types, SHA-256 in hex
        summary: record by which a later table is compared; see ``content.describe_differences``
        settings: user's columns that look like settings of the generation
        empty_prompts: number of rows without a prompt
        discard: removes what this process has made of the table where others find it
    """

    schema: pa.Schema
    count: int
    rows: Callable[[int, int], pa.Table]
    content: str
    summary: dict[str, Any]
    settings: list[str]
    empty_prompts: int
    discard: Callable[[], None] = lambda: None

    @property
    def user_schema(self) -> pa.Schema:
        """Names and types of the user's columns."""
        return pa.schema(list(self.schema)[len(OWN_SCHEMA) :])

    def read(self, first: int, count: int) -> list[dict[str, Any]]:
        """Rows from ``first`` on, by column; those that could not be read have the reason under ``error``."""
        found: list[dict[str, Any]] = self.rows(first, count).to_pylist()
        assert len(found) == count, f"{len(found)} rows of {count}"
        return found


def table_in_memory(request: Request, max_bytes: int = MEMORY_BYTES) -> PromptTable | None:
    """All rows, if they are few; None as soon as they are not.

    Raises:
        UsageError: anything about the rows is not allowed; names the file and line.
    """
    one, held, size, count = Normalisation(request), [], 0, 0
    for rows in one.rows():
        held.append(rows)
        size, count = size + rows.nbytes, count + rows.num_rows
        if size > max_bytes or count > MEMORY_ROWS:
            return None
    table = pa.concat_tables(one.finished(held))
    return PromptTable(table.schema, count, table.slice, **one.metadata())


def write_table(request: Request, sink: Any, shard_rows: int) -> None:
    """Writes all rows as Parquet, with what is known of them in the footer.

    Args:
        request: what is read
        sink: binary file that nobody reads before this ends
        shard_rows: rows of a shard

    Raises:
        UsageError: anything about the rows is not allowed; names the file and line.
    """
    one = Normalisation(request)
    rows = one.rows() if one.typed else spooled(one.rows())
    with pq.ParquetWriter(sink, one.schema(), compression="zstd", compression_level=1, write_statistics=False) as writer:
        groups = _RowGroups(writer, shard_rows * max(1, GROUP_ROWS // shard_rows))
        for table in one.finished(rows):
            groups.add(table)
        groups.flush()
        writer.add_key_value_metadata({_METADATA: json.dumps(one.metadata()).encode()})


def open_table(opened: Opened, discard: Callable[[], None] = lambda: None) -> PromptTable:
    """A table that ``write_table`` wrote.

    Args:
        opened: opens the file, whose footer may be known already
        discard: removes the file if this process has made it
    """
    with opened(None) as file:
        metadata, schema = file.metadata, file.schema_arrow.remove_metadata()
    ends = np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)])

    def rows(first: int, count: int) -> pa.Table:
        start, stop = np.searchsorted(ends, [first, first + count - 1], side="right")
        before = int(ends[start - 1]) if start else 0
        with opened(metadata) as file:
            return file.read_row_groups(list(range(start, stop + 1))).slice(first - before, count)

    known = json.loads(metadata.metadata[_METADATA])
    return PromptTable(schema, metadata.num_rows, rows, **known, discard=discard)


def table_on_disk(request: Request, shard_rows: int) -> PromptTable:
    """All rows in a temporary file without a name, which ends with the table.

    Raises:
        UsageError: anything about the rows is not allowed; names the file and line.
    """
    file = tempfile.TemporaryFile()  # noqa: SIM115
    write_table(request, file, shard_rows)
    file.flush()
    return open_table(lambda metadata: pq.ParquetFile(f"/proc/self/fd/{file.fileno()}", metadata=metadata))


class _RowGroups:
    """Rows gathered into row groups that end with shards, unless they would be too large."""

    def __init__(self, writer: pq.ParquetWriter, group_rows: int) -> None:
        self._writer, self._group_rows = writer, group_rows
        self._written = self._rows = self._bytes = 0
        self._held: list[pa.Table] = []

    def add(self, rows: pa.Table) -> None:
        while rows.num_rows:
            left = self._group_rows - (self._written + self._rows) % self._group_rows
            fitting = int((GROUP_BYTES - self._bytes) * rows.num_rows / max(rows.nbytes, 1))
            part = rows.slice(0, max(1, min(fitting, left)))
            rows = rows.slice(part.num_rows)
            self._held.append(part)
            self._rows, self._bytes = self._rows + part.num_rows, self._bytes + part.nbytes
            if part.num_rows == left or self._bytes >= GROUP_BYTES:
                self.flush()

    def flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.concat_tables(self._held), row_group_size=self._rows)
        self._written += self._rows
        self._held, self._rows, self._bytes = [], 0, 0
