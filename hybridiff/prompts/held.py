"""Small prompt tables, held in memory."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hybridiff.columns import PROMPT_COLUMNS
from hybridiff.config import DataConfig
from hybridiff.prompts.inference import CellKind, JsonKind
from hybridiff.prompts.keys import refuse_duplicate
from hybridiff.prompts.kinds import joined, readable, typed_values
from hybridiff.prompts.names import check_columns_together, check_names
from hybridiff.prompts.rows import Request, key_column, own_rows, stored_name
from hybridiff.prompts.tables import CELL_FORMATS, Source, Table, open_source, reported
from hybridiff.prompts.text import read_text


class HeldRows:
    """All rows of some files, checked.

    Attributes:
        count: Rows.
        schema: Of key, prompt, negative_prompt, seed and the user's columns.
        content: SHA-256 (hex) over everything of all rows as given, in order, and the types of their columns.

    Raises:
        UsageError: Anything about the tables is not allowed; names the file and row.
    """

    def __init__(self, request: Request) -> None:
        data = request.data
        tables = [_read(source, data) for source in request.sources]
        pairs = zip(tables, request.slugs, strict=True)
        own = pa.concat_tables([own_rows(table, data, slug, request.images) for table, slug in pairs])
        if own.num_rows == 0:
            raise request.refuse_empty()
        _check_unique(own["key"], tables)
        self._table = pa.table({name: own[name] for name in PROMPT_COLUMNS} | _user_columns(tables, data))
        self.count: int = self._table.num_rows
        self.schema: pa.Schema = self._table.schema
        with reported(", ".join(source.name for source in request.sources), "a row can't be read"):
            self.content: str = self._hash()

    def discard(self) -> None:
        """Does nothing: there are no copies."""

    def read(self, first: int, count: int) -> list[dict[str, Any]]:
        """Rows from ``first`` on."""
        rows: list[dict[str, Any]] = self._table.slice(first, count).to_pylist()
        return rows

    def _hash(self) -> str:
        encode = json.JSONEncoder(default=repr).encode
        digest = hashlib.sha256(encode([[field.name, str(field.type)] for field in self.schema]).encode())
        for batch in self._table.to_batches(max_chunksize=10_000):
            for row in batch.to_pylist():
                digest.update(encode(list(row.values())).encode() + b"\n")
        return digest.hexdigest()


def _read(source: Source, data: DataConfig) -> Table:
    with open_source(source) as file:
        if source.suffix != ".parquet":
            (table,) = read_text(source, data, file, chunk_rows=None)
            return table
        with reported(source.name, "cannot be read"):
            content = file.read()
    with reported(source.name, "is not a readable Parquet file"):
        rows = pq.read_table(pa.BufferReader(content))
        rows.validate(full=True)
    check_names(source.name, rows.column_names)
    return Table(source, dict(zip(rows.column_names, rows.columns, strict=True)), range(1, rows.num_rows + 1))


def _check_unique(keys: pa.ChunkedArray, tables: list[Table]) -> None:
    def place(row: int) -> str:
        for table in tables:
            if row < len(table.numbers):
                return table.place(row)
            row -= len(table.numbers)
        raise AssertionError("no such row")

    if pc.count_distinct(keys).as_py() < len(keys):
        refuse_duplicate(keys.to_pylist(), place)


def _user_columns(tables: Sequence[Table], data: DataConfig) -> dict[str, pa.ChunkedArray]:
    """The further columns of all tables below each other, null where a table lacks one.

    Parquet's types stay, other formats get the types that their values show. Names of the corpus get ``input_`` in front.

    Raises:
        UsageError: A name can't be stored; names the file.
    """
    own = [{data.prompt_column, key_column(table.columns, data), "negative_prompt", "seed"} for table in tables]
    kept = [{n: v for n, v in table.columns.items() if n not in taken} for table, taken in zip(tables, own, strict=True)]
    places = {name: table.source.name for table, columns in zip(tables, kept, strict=True) for name in columns}
    check_columns_together(places)
    are_cells = [table.source.suffix in CELL_FORMATS for table in tables]
    united = {}
    for name in dict.fromkeys(name for columns in kept for name in columns):
        parts = [
            _typed(table, columns[name]) if name in columns else pa.nulls(len(table.numbers))
            for table, columns in zip(tables, kept, strict=True)
        ]
        united[stored_name(name, places)] = joined(parts, are_cells)
    return united


def _typed(table: Table, values: list[Any] | pa.ChunkedArray) -> pa.ChunkedArray:
    if isinstance(values, pa.ChunkedArray):
        return readable(values)
    is_cell = table.source.suffix in CELL_FORMATS
    kind = CellKind() if is_cell else JsonKind()
    kind.add(values)
    return typed_values(values, is_cell, kind.kind)
