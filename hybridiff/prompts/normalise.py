"""Tables of any format made one: a single pass over all sources gives checked rows of one schema, in bounded memory.

Types of JSON columns are known only after the last row, so rows wait until then, on disk if they are many (``Spool``); those of
Parquet files are in their footers, and rows go straight on.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import pyarrow as pa

from hybridiff.columns import PROMPT_COLUMNS
from hybridiff.config import DataConfig
from hybridiff.errors import UsageError
from hybridiff.prompts.arrow_formats import parquet_schema, read_own, read_parquet
from hybridiff.prompts.column_types import ColumnTypes, converted
from hybridiff.prompts.key_hashes import KeyHashes, hash_keys
from hybridiff.prompts.keys import file_slugs, refuse_duplicate
from hybridiff.prompts.names import check_columns, key_column, settings_among
from hybridiff.prompts.rows import OwnRows, own_rows, stored_name
from hybridiff.prompts.sources import Source
from hybridiff.prompts.text_formats import Piece, read_text

OWN_SCHEMA = pa.schema([(name, pa.int64() if name == "seed" else pa.string()) for name in (*PROMPT_COLUMNS, "error")])
_USER = "user."  # prefix of the user's columns until they have the names and types of the corpus
_MOST_REPEATED = 1 << 16  # hashes of keys that are looked for when some are found twice


@dataclass(frozen=True)
class Request:
    """What is read.

    Args:
        sources: files and own sources, in order
        data: names of columns, and how files are read
        images: images per row
    """

    sources: Sequence[Source]
    data: DataConfig
    images: int

    @property
    def slugs(self) -> list[str]:
        """For each source, what the keys of its rows begin with, if they bring none."""
        return file_slugs([source.stem for source in self.sources])

    def pieces(self) -> Iterator[tuple[Piece, OwnRows]]:
        """All rows in order, their own columns checked.

        Raises:
            UsageError: anything about the rows is not allowed; names the file and line.
        """
        total = 0
        for source, slug in zip(self.sources, self.slugs, strict=True):
            count, start = 0, 1
            makes_keys: bool | None = None
            for piece in _read(source, self.data):
                own = own_rows(piece, self.data, slug, self.images, count)
                if makes_keys not in (None, own.makes_keys):  # a column of keys that begins in the middle of the file
                    name = key_column(piece.columns, self.data)
                    raise UsageError(f"{source.place(start)}: {name} is None; allowed: text or an integer")
                if piece.numbers and makes_keys is None:
                    start, makes_keys = piece.numbers[0], own.makes_keys
                count, total = count + len(piece.numbers), total + len(piece.numbers)
                if total > self.data.max_rows:
                    raise UsageError(f"{source.name}: brings the rows to more than {self.data.max_rows}; see data.max_rows")
                yield piece, own
        if not total:
            raise UsageError(f"{', '.join(source.name for source in self.sources)}: no prompts; allowed: one row or more")


class Normalisation:
    """One pass over all sources. Use it as a context.

    Args:
        request: what is read

    Attributes:
        typed: whether the types of all columns are known before the first row
        empty_prompts: rows without a prompt, so far
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.empty_prompts = 0
        self._types = ColumnTypes()
        self._hashes = KeyHashes()
        self.typed = all(source.suffix in (".parquet", ".txt") for source in request.sources)
        for source in request.sources if self.typed else ():
            self._declare(source)

    def __enter__(self) -> "Normalisation":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._hashes.close()

    def rows(self) -> Iterator[pa.Table]:
        """All rows, checked; the user's columns as they were read.

        Raises:
            UsageError: anything about the rows is not allowed; names the file and line.
        """
        for piece, own in self.request.pieces():
            count = len(piece.numbers)
            if not count:
                continue
            self.empty_prompts += own.empty_prompts
            self._hashes.add(hash_keys(own.table["key"].combine_chunks()))
            errors = pa.array([piece.errors.get(row) for row in range(count)], pa.string()) if piece.errors else None
            fields, columns = list(OWN_SCHEMA), [*own.table.columns, errors or pa.nulls(count, pa.string())]
            for name in piece.columns:
                if name not in own.used:
                    field, column = self._types.add(piece, name)
                    fields.append(field.with_name(_USER + name))
                    columns.append(column)
            yield pa.Table.from_arrays(columns, schema=pa.schema(fields))

    def check_unique(self) -> None:
        """Raises ``UsageError`` where two of all rows have one key; names both files and lines."""
        repeated = self._hashes.repeated()[:_MOST_REPEATED]
        if not len(repeated):
            return
        places: list[str] = []

        def candidates() -> Iterator[str]:  # different keys may have equal hashes
            for piece, own in self.request.pieces():
                keys = own.table["key"].combine_chunks()
                for row in np.flatnonzero(np.isin(hash_keys(keys), repeated)):
                    places.append(piece.place(int(row)))
                    yield keys[int(row)].as_py()

        refuse_duplicate(candidates(), places.__getitem__)

    def schema(self) -> pa.Schema:
        """Names and types of the normalised columns; final once all rows were read, or at once where they are ``typed``.

        Raises:
            UsageError: a name can't be stored; names the file.
        """
        found = self._types.schema()
        places = {name: self._types.source(name) for name in found.names}
        return pa.schema([*OWN_SCHEMA, *((stored_name(field.name, places), field.type) for field in found)])

    def convert(self, rows: pa.Table, schema: pa.Schema) -> pa.Table:
        """Rows as ``rows`` gave them in the schema of all."""
        columns = rows.columns[: len(OWN_SCHEMA)]
        for name, target in zip(self._types.schema().names, list(schema)[len(OWN_SCHEMA) :], strict=True):
            index = rows.schema.get_field_index(_USER + name)
            if index < 0:
                columns.append(pa.nulls(rows.num_rows, target.type))
            else:
                columns.append(converted(rows.column(index), rows.schema.field(index), target.type))
        return pa.Table.from_arrays(columns, schema=schema)

    def settings(self) -> list[str]:
        """The user's columns that look like settings of the generation."""
        return settings_among(self._types.schema().names)

    def _declare(self, source: Source) -> None:
        if source.suffix == ".txt":  # which has no further columns
            return
        data = self.request.data
        schema, rows = parquet_schema(source, data)
        if rows:
            check_columns(source.name, schema.names, data)
            used = (data.prompt_column, key_column(schema.names, data), "negative_prompt", "seed")
            for field in schema:
                if field.name not in used:
                    self._types.declare(source.name, field.name, field.type)


class Spool:
    """Rows that wait for their types, in a file without a name. Use it as a context."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._stream: pa.RecordBatchStreamWriter | None = None
        self._schema: pa.Schema | None = None

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, rows: pa.Table) -> None:
        """Appends rows, whose columns may differ from those before."""
        if self._stream is None or not rows.schema.equals(self._schema, check_metadata=True):
            self._end_stream()
            self._schema = rows.schema
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            self._stream = pa.ipc.new_stream(pa.PythonFile(self._file, "w"), rows.schema, options=options)
        self._stream.write_table(rows)

    def __iter__(self) -> Iterator[pa.Table]:
        self._end_stream()
        end = self._file.tell()
        self._file.seek(0)
        while self._file.tell() < end:
            with pa.ipc.open_stream(pa.PythonFile(self._file, "r")) as stream:
                for batch in stream:
                    yield pa.Table.from_batches([batch])

    def _end_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def _read(source: Source, data: DataConfig) -> Iterator[Piece]:
    if source.rows is not None:
        return read_own(source, data)
    return read_parquet(source, data) if source.suffix == ".parquet" else read_text(source, data)
