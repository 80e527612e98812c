"""A normalised table: few rows in memory, many in a Parquet file whose row groups match the shards."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hybridiff.columns import PROMPT_COLUMNS
from hybridiff.prompts.content import ContentDigest, summary
from hybridiff.prompts.normalise import OWN_SCHEMA, Normalisation, Request, Spool

MEMORY_BYTES, MEMORY_ROWS = 32 << 20, 1 << 18  # of Arrow: tables beyond are not held in memory
GROUP_ROWS, GROUP_BYTES = 1 << 14, 1 << 26  # of a row group: as many shards as fit
_RECORD = b"hybridiff"


@dataclass(frozen=True)
class TableRecord:
    """What is known of a table beside its rows.

    Args:
        content: identity of the rows and their types, SHA-256 in hex
        summary: what tells how another table differs; see ``content.differences``
        settings: user's columns that look like settings of the generation
        empty_prompts: rows without a prompt
    """

    content: str
    summary: dict[str, Any]
    settings: list[str]
    empty_prompts: int


class PromptTable:
    """The rows of all sources in one schema.

    Args:
        record: what is known of them
        schema: names and types of the columns
        count: number of rows
        rows: reads rows, by first row and count
        discard: removes what this process has made of the table where others find it
        keep: anything that must live as long as the rows are read
    """

    def __init__(
        self,
        record: TableRecord,
        schema: pa.Schema,
        count: int,
        rows: Callable[[int, int], pa.Table],
        discard: Callable[[], None] = lambda: None,
        keep: object = None,
    ) -> None:
        self.record, self.count, self.discard = record, count, discard
        self.content = record.content
        self.rows = rows
        self.user_schema = pa.schema(list(schema)[len(OWN_SCHEMA) :])
        self._keep = keep

    def read(self, first: int, count: int) -> list[dict[str, Any]]:
        """Rows from ``first`` on, by column; those that could not be read have the reason under ``error``."""
        found: list[dict[str, Any]] = self.rows(first, count).to_pylist()
        assert len(found) == count, f"{len(found)} rows of {count}"
        return found


def table_in_memory(request: Request, max_bytes: int = MEMORY_BYTES, max_rows: int = MEMORY_ROWS) -> PromptTable | None:
    """All rows, if they are few; None as soon as they are not.

    Raises:
        UsageError: anything about the rows is not allowed; names the file and line.
    """
    held: list[pa.Table] = []
    size = count = 0
    with Normalisation(request) as one:
        for rows in one.rows():
            held.append(rows)
            size, count = size + rows.nbytes, count + rows.num_rows
            if size > max_bytes or count > max_rows:
                return None
        one.check_unique()
        schema, digest = one.schema(), ContentDigest()
        tables = [one.convert(rows, schema) for rows in held]
        for rows in tables:
            digest.add(rows)
        table = pa.concat_tables(tables)
        return PromptTable(_record(one, schema, digest, table["key"][0].as_py(), count), schema, count, table.slice)


def write_table(request: Request, sink: Any, shard_rows: int) -> None:
    """Writes all rows as Parquet, with what is known of them in the footer.

    Args:
        request: what is read
        sink: binary file that nobody reads before this ends
        shard_rows: rows of a shard

    Raises:
        UsageError: anything about the rows is not allowed; names the file and line.
    """
    with Normalisation(request) as one, Spool() as spool:
        if one.typed:
            found: Iterator[pa.Table] | Spool = one.rows()
        else:
            found = spool
            for rows in one.rows():
                spool.add(rows)
            one.check_unique()
        schema, digest, first_key, count = one.schema(), ContentDigest(), "", 0
        with pq.ParquetWriter(sink, schema, compression="zstd", compression_level=1, write_statistics=False) as writer:
            groups = _RowGroups(writer, shard_rows * max(1, GROUP_ROWS // shard_rows))
            for rows in found:
                table = one.convert(rows, schema)
                first_key = first_key or table["key"][0].as_py()
                count += table.num_rows
                digest.add(table)
                groups.add(table)
            groups.flush()
            if one.typed:
                one.check_unique()
            record = _record(one, schema, digest, first_key, count)
            writer.add_key_value_metadata({_RECORD: json.dumps(asdict(record)).encode()})


def open_table(
    opened: Callable[[pq.FileMetaData | None], AbstractContextManager[pq.ParquetFile]],
    discard: Callable[[], None] = lambda: None,
    keep: object = None,
) -> PromptTable:
    """A table that ``write_table`` wrote.

    Args:
        opened: opens the file, whose footer may be known already
        discard: removes the file if this process has made it
        keep: anything that must live as long as the rows are read
    """
    with opened(None) as file:
        metadata, schema = file.metadata, file.schema_arrow
    ends = np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)])

    def rows(first: int, count: int) -> pa.Table:
        start, stop = np.searchsorted(ends, [first, first + count - 1], side="right")
        before = int(ends[start - 1]) if start else 0
        with opened(metadata) as file:
            return file.read_row_groups(list(range(start, stop + 1))).slice(first - before, count)

    record = TableRecord(**json.loads(metadata.metadata[_RECORD]))
    return PromptTable(record, schema.remove_metadata(), metadata.num_rows, rows, discard, keep)


def table_on_disk(request: Request, shard_rows: int) -> PromptTable:
    """All rows in a temporary file without a name, which ends with the table.

    Raises:
        UsageError: anything about the rows is not allowed; names the file and line.
    """
    file = tempfile.TemporaryFile()  # noqa: SIM115
    write_table(request, file, shard_rows)
    file.flush()
    path = f"/proc/{os.getpid()}/fd/{file.fileno()}"
    return open_table(lambda metadata: pq.ParquetFile(path, metadata=metadata), keep=file)


class _RowGroups:
    """Rows gathered into row groups that end with shards, unless they would be too large."""

    def __init__(self, writer: pq.ParquetWriter, group_rows: int) -> None:
        self._writer, self._group_rows = writer, group_rows
        self._written = self._rows = self._bytes = 0
        self._held: list[pa.Table] = []

    def add(self, rows: pa.Table) -> None:
        while rows.num_rows:
            fitting = int((GROUP_BYTES - self._bytes) * rows.num_rows / max(rows.nbytes, 1))
            part = rows.slice(0, max(1, min(fitting, self._group_rows - (self._written + self._rows) % self._group_rows)))
            rows = rows.slice(part.num_rows)
            self._held.append(part)
            self._rows, self._bytes = self._rows + part.num_rows, self._bytes + part.nbytes
            if (self._written + self._rows) % self._group_rows == 0 or self._bytes >= GROUP_BYTES:
                self.flush()

    def flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.concat_tables(self._held), row_group_size=self._rows)
        self._written += self._rows
        self._held, self._rows, self._bytes = [], 0, 0


def _record(one: Normalisation, schema: pa.Schema, digest: ContentDigest, first_key: str, count: int) -> TableRecord:
    content = digest.finish(schema)
    columns = {field.name: str(field.type) for field in chain(list(schema)[len(PROMPT_COLUMNS) + 1 :])}
    known = {"rows": count, "first_key": first_key, "columns": columns}
    return TableRecord(content, summary(known, digest), one.settings(), one.empty_prompts)
