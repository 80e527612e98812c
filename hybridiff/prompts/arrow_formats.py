"""Rows that come as Arrow: Parquet files, read in pieces within bounds, and own sources. What can't be read fails alone."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hybridiff.config import DataConfig
from hybridiff.errors import UsageError
from hybridiff.prompts.column_types import chunked, has_readers, is_text, texts
from hybridiff.prompts.names import check_names, shown
from hybridiff.prompts.sources import Source, open_source, reported
from hybridiff.prompts.text_formats import CHUNK_ROWS, MAX_LEVELS, Piece, Row, is_deep, pieces
from hybridiff.storage.filesystem import is_local

BATCH_BYTES = 1 << 26
BUFFER_BYTES = 1 << 20  # of reading a column: keeps a huge row group out of memory
_UNREADABLE = "is not a readable Parquet file"
_OWN_ROWS = 256  # of an own source at once: how long its rows are is not known before
_PLAIN = (bool, int, float, str, list, dict, type(None))


def read_parquet(source: Source, data: DataConfig) -> Iterator[Piece]:
    """The rows of a Parquet file in pieces, in types that Python and readers of the corpus have.

    Raises:
        UsageError: the file can't be read, or is beyond the bounds; names it.
    """
    with _open_parquet(source, data) as (file, with_dictionaries):
        schema = _readable_schema(source, file)
        first = 0
        for group in range(file.metadata.num_row_groups):
            rows = _batch_rows(source, data, file, with_dictionaries, group)
            with reported(source.name, _UNREADABLE):
                for batch in file.iter_batches(rows, row_groups=[group]):
                    yield _piece(source, data, pa.Table.from_batches([batch]), schema, first)
                    first += batch.num_rows


def parquet_schema(source: Source, data: DataConfig) -> tuple[pa.Schema, int]:
    """Names and types that ``read_parquet`` gives the columns of a file, and the number of its rows."""
    with _open_parquet(source, data) as (file, _):
        return _readable_schema(source, file), file.metadata.num_rows


def _readable_schema(source: Source, file: pq.ParquetFile) -> pa.Schema:
    check_names(source.name, file.schema_arrow.names)
    fields = []
    for field in file.schema_arrow:
        kind = _without_dictionaries(field.type)
        if pa.types.is_timestamp(kind) and kind.unit == "ns":
            kind = pa.timestamp("us", kind.tz) if _are_microseconds(source, file, field.name) else pa.string()
        elif not has_readers(kind):
            kind = pa.string()
        fields.append(pa.field(field.name, kind))
    return pa.schema(fields)


def read_own(source: Source, data: DataConfig) -> Iterator[Piece]:
    """The rows of an own source in pieces.

    Raises:
        UsageError: it raises anything, or gives something that is no row.
    """
    first = 0
    rows: list[Row] = []
    assert source.rows is not None
    with reported(source.name, "cannot be read"):
        for given in source.rows:
            if isinstance(given, Mapping):
                rows.append((first + len(rows) + 1, _plain_row(source, first + len(rows) + 1, given)))
            if rows and (len(rows) == _OWN_ROWS or not isinstance(given, Mapping)):
                yield from pieces(source, iter(rows), [], lambda: 0)
                first += len(rows)
                rows = []
            if isinstance(given, (pa.RecordBatch, pa.Table)):
                table = given if isinstance(given, pa.Table) else pa.Table.from_batches([given])
                check_names(source.name, table.column_names)
                kinds = list(map(_without_dictionaries, table.schema.types))
                kinds = [k if has_readers(k) and getattr(k, "unit", "") != "ns" else pa.string() for k in kinds]
                schema = pa.schema(list(zip(table.column_names, kinds, strict=True)))
                for start in range(0, table.num_rows, CHUNK_ROWS):
                    yield _piece(source, data, table.slice(start, CHUNK_ROWS), schema, first + start)
                first += table.num_rows
            elif not isinstance(given, Mapping):
                raise UsageError(f"{source.place(first + 1)}: is a {type(given).__name__}; allowed: a dict, or an Arrow batch")
        yield from pieces(source, iter(rows), [], lambda: 0) if rows or not first else ()


def _plain_row(source: Source, number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    plain = {name: value.item() if hasattr(value, "item") else value for name, value in row.items()}  # numpy's scalars
    for name, value in plain.items():
        if not isinstance(name, str) or type(value) not in _PLAIN:
            allowed = "text as names; bool, int, float, str, None, and lists and dicts of them as values"
            raise UsageError(f"{source.place(number)}: {shown(name)} is a {type(value).__name__}; allowed: {allowed}")
        if isinstance(value, (list, dict)) and is_deep(value):
            raise UsageError(f"{source.place(number)}: nests deeply; allowed: {MAX_LEVELS} levels")
    return plain


@contextmanager
def _open_parquet(source: Source, data: DataConfig) -> Iterator[tuple[pq.ParquetFile, pq.ParquetFile]]:
    """The file, and the same one read with the dictionaries of its columns kept."""
    with ExitStack() as stack:
        handle: Any
        if source.compression or source.size() is None:  # nothing can be looked up in it
            handle = stack.enter_context(tempfile.TemporaryFile())
            with open_source(source, data) as packed, reported(source.name, "cannot be read"):
                shutil.copyfileobj(packed, handle, 1 << 20)
        elif is_local(source.files):
            handle = source.path
        else:
            with reported(source.name, "cannot be read"):
                handle = stack.enter_context(source.files.open(source.path, "rb"))
        with reported(source.name, _UNREADABLE):
            file = stack.enter_context(pq.ParquetFile(handle, buffer_size=BUFFER_BYTES))
            leaves = [file.schema.column(index) for index in range(len(file.schema))]
            names = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
            if file.metadata.num_rows > data.max_rows:
                raise UsageError(f"{source.name}: has {file.metadata.num_rows} rows; allowed: {data.max_rows} (data.max_rows)")
            kept = pq.ParquetFile(handle, buffer_size=BUFFER_BYTES, read_dictionary=names, metadata=file.metadata)
        yield file, stack.enter_context(kept)


def _batch_rows(source: Source, data: DataConfig, file: pq.ParquetFile, kept: pq.ParquetFile, group: int) -> int:
    """How many rows of a row group to hold at once: fewer where they are long, or may be by the texts that rows refer to."""
    metadata = file.metadata.row_group(group)
    if metadata.total_byte_size > data.max_row_group:
        raise UsageError(
            f"{source.name}: row group {group} has {metadata.total_byte_size} bytes; allowed: {data.max_row_group}, or a higher "
            "data.max_row_group"
        )
    if not metadata.num_rows:
        return 1
    with reported(source.name, _UNREADABLE):
        head = next(kept.iter_batches(1, row_groups=[group]), None)
    longest = max([_longest(column) for column in head.columns], default=0) if head is not None else 0
    mean = metadata.total_byte_size / metadata.num_rows
    return int(max(1, min(CHUNK_ROWS, BATCH_BYTES / max(mean, longest, 1.0))))


def _longest(column: pa.Array) -> int:
    """Bytes of the longest text in the dictionaries of a column, and in those of what is nested in it."""
    if isinstance(column, pa.DictionaryArray):
        kind = column.dictionary.type
        sized = is_text(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        return int(pc.max(pc.binary_length(column.dictionary)).as_py() or 0) if sized else 0
    if pa.types.is_struct(column.type):
        return max((_longest(column.field(index)) for index in range(column.type.num_fields)), default=0)
    if pa.types.is_nested(column.type):
        return _longest(column.values)
    return 0


def _are_microseconds(source: Source, file: pq.ParquetFile, name: str) -> bool:
    """Whether a column of nanoseconds is one of microseconds, which is all that Python's times hold."""
    with reported(source.name, _UNREADABLE):
        for batch in file.iter_batches(CHUNK_ROWS, columns=[name]):
            column = batch.column(0)
            column = column.dictionary if isinstance(column, pa.DictionaryArray) else column
            with suppress(pa.ArrowInvalid):
                column.cast(pa.timestamp("us", column.type.tz))
                continue
            return False
    return True


def _piece(source: Source, data: DataConfig, rows: pa.Table, schema: pa.Schema, first: int) -> Piece:
    columns: dict[str, list[Any] | pa.ChunkedArray] = {}
    errors: dict[int, str] = {}
    for field, given in zip(schema, rows.columns, strict=True):
        column = given.cast(_without_dictionaries(given.type)) if has_readers(given.type) else given
        if not column.type.equals(field.type) and pa.types.is_timestamp(column.type):
            column = column.cast(field.type)
        _check_lengths(source, data, field.name, column, first)
        column, found = _replace_unreadable(column)
        columns[field.name] = column if column.type.equals(field.type) else texts(column.to_pylist())
        for row, reason in found.items():
            errors.setdefault(row, f"{shown(field.name)} can't be read: {reason}")
    return Piece(source, columns, range(first + 1, first + rows.num_rows + 1), errors)


def _without_dictionaries(kind: pa.DataType) -> pa.DataType:
    """A type whose values are held as such where they were looked up in a dictionary."""
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_dictionaries(field.type)) for field in kind])
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_without_dictionaries(kind.value_type), kind.list_size)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        make = pa.list_ if pa.types.is_list(kind) else pa.large_list
        return make(kind.value_field.with_type(_without_dictionaries(kind.value_type)))
    return kind


def _check_lengths(source: Source, data: DataConfig, name: str, column: pa.ChunkedArray, first: int) -> None:
    if is_text(column.type) and len(column):
        lengths = pc.fill_null(pc.binary_length(column), 0)
        if (longest := pc.max(lengths).as_py()) > data.max_text:
            place = source.place(first + 1 + pc.index(lengths, longest).as_py())
            raise UsageError(f"{place}: {shown(name)} has {longest} bytes; allowed: {data.max_text}, or a higher data.max_text")


def _replace_unreadable(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, dict[int, str]]:
    """A column with what can't be read replaced: in text faulty bytes by U+FFFD, other values by null; and why, by row."""
    with suppress(pa.ArrowException, ValueError, OverflowError):
        column.validate(full=True)
        if pa.types.is_nested(column.type) or pa.types.is_temporal(column.type):
            column.to_pylist()  # years after 9999 are valid, but none of Python's
        return column, {}
    return _replace_in_text(column) if is_text(column.type) else _replace_others(column)


def _replace_in_text(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, dict[int, str]]:
    faults: dict[int, str] = {}
    values: list[Any] = column.cast(pa.large_string()).cast(pa.large_binary()).to_pylist()
    for row, value in enumerate(values):
        try:
            values[row] = None if value is None else value.decode()
        except UnicodeDecodeError as error:
            values[row] = value.decode(errors="replace")
            faults[row] = f"it is not UTF-8 text, from its byte {error.start} on"
    return chunked(values, pa.large_string()).cast(column.type), faults


def _replace_others(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, dict[int, str]]:
    faults: dict[int, str] = {}
    for row in range(len(column)):
        try:
            one = column.take(pa.array([row]))
            one.validate(full=True)
            one.to_pylist()
        except (pa.ArrowException, ValueError, OverflowError) as error:
            faults[row] = " ".join(str(error).split())
    kept: Sequence[int | None] = [None if row in faults else row for row in range(len(column))]
    return column.take(pa.array(kept, pa.int64())), faults
