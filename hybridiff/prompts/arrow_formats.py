"""Rows that come as Arrow: Parquet files, read in pieces within bounds, and own sources. What can't be read fails alone."""

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hybridiff.config import DataConfig
from hybridiff.errors import UsageError
from hybridiff.prompts.column_types import chunked, is_nanoseconds, is_text, microseconds, plain_type, texts
from hybridiff.prompts.names import check_names, shown
from hybridiff.prompts.sources import Piece, Source, check_content, open_source, open_stored, parsing
from hybridiff.prompts.text_formats import CHUNK_BYTES, CHUNK_ROWS, MAX_LEVELS, is_deep, pieces
from hybridiff.storage.filesystem import is_local

BATCH_BYTES = 1 << 26
BUFFER_BYTES = 1 << 20  # of reading a column: keeps a huge row group out of memory
_BESIDE_VALUE = 8  # bytes of a value's length and levels
_UNREADABLE = "is not a readable Parquet file"
_OWN_ROWS = 256  # of an own source at once: how long its rows are is not known before
_PLAIN = (bool, int, float, str, list, dict, type(None))


def read_parquet(source: Source, data: DataConfig) -> Iterator[Piece]:
    """The rows of a Parquet file in pieces, in types that Python and readers of the corpus have.

    Raises:
        UsageError: the file can't be read, or is beyond the bounds; names it.
    """
    with _open_parquet(source, data) as (file, with_dictionaries):
        schema = _readable_schema(source, data, file)
        first = 0
        for group in range(file.metadata.num_row_groups):
            rows = _batch_rows(source, data, with_dictionaries, group)
            with parsing(source.name, _UNREADABLE):
                for batch in file.iter_batches(rows, row_groups=[group]):
                    yield _piece(source, data, pa.Table.from_batches([batch]), schema, first)
                    first += batch.num_rows


def parquet_schema(source: Source, data: DataConfig) -> tuple[pa.Schema, int]:
    """Names and types that ``read_parquet`` gives the columns of a file, and the number of its rows."""
    with _open_parquet(source, data) as (file, _):
        return _readable_schema(source, data, file), file.metadata.num_rows


def read_own(source: Source, data: DataConfig) -> Iterator[Piece]:
    """The rows of an own source in pieces.

    Raises:
        UsageError: it raises anything, or gives something that is no row.
    """
    done = 0  # rows

    def plain_rows(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
        nonlocal done
        for row in rows:
            done += 1
            yield done, _plain_row(source, done, row)

    def position() -> int:
        return done * (CHUNK_BYTES // _OWN_ROWS)

    assert source.rows is not None
    with parsing(source.name, "cannot be read"):
        for are_rows, group in groupby(source.rows, key=lambda given: isinstance(given, Mapping)):
            if are_rows:
                yield from pieces(source, data, plain_rows(group), [], position)
                continue
            for given in group:
                if not isinstance(given, (pa.RecordBatch, pa.Table)):
                    raise UsageError(f"{source.place(done + 1)}: is a {type(given).__name__}; allowed: a dict, or an Arrow batch")
                table = given if isinstance(given, pa.Table) else pa.Table.from_batches([given])
                check_names(source.name, table.column_names, data)
                kinds = [plain_type(kind) or pa.string() for kind in table.schema.types]
                kinds = [pa.string() if is_nanoseconds(kind) else kind for kind in kinds]
                schema = pa.schema(list(zip(table.column_names, kinds, strict=True)))
                for start in range(0, table.num_rows, CHUNK_ROWS):
                    yield _piece(source, data, table.slice(start, CHUNK_ROWS), schema, done + start)
                done += table.num_rows


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
        handle: Any = source.path
        if source.compression or source.info().get("size") is None:  # nothing can be looked up in it
            handle = stack.enter_context(tempfile.TemporaryFile())
            with open_source(source, data) as packed, parsing(source.name, "cannot be read"):
                shutil.copyfileobj(packed, handle, 1 << 20)
        elif not is_local(source.files):
            handle = stack.enter_context(open_stored(source))
        with parsing(source.name, _UNREADABLE):
            try:
                file = stack.enter_context(pq.ParquetFile(handle, buffer_size=BUFFER_BYTES))
            except pa.ArrowInvalid:
                with open_source(source, data) as bytes_of_it:
                    check_content(source, bytes_of_it.read(64))
                raise
            if file.metadata.num_rows > data.max_rows:
                raise UsageError(f"{source.name}: has {file.metadata.num_rows} rows; allowed: {data.max_rows} (data.max_rows)")
            leaves = [file.schema.column(index) for index in range(len(file.schema))]
            names = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
            kept = pq.ParquetFile(handle, buffer_size=BUFFER_BYTES, read_dictionary=names, metadata=file.metadata)
        yield file, stack.enter_context(kept)


def _readable_schema(source: Source, data: DataConfig, file: pq.ParquetFile) -> pa.Schema:
    check_names(source.name, file.schema_arrow.names, data)
    kinds = {field.name: plain_type(field.type) or pa.string() for field in file.schema_arrow}
    for name, kind in kinds.items():
        _check_zones(source, name, kind)
        if is_nanoseconds(kind):
            kinds[name] = microseconds(kind) if _are_microseconds(source, file, name, kind) else pa.string()
    return pa.schema(list(kinds.items()))


def _check_zones(source: Source, name: str, kind: pa.DataType) -> None:
    """Refuses times in zones that are not known here: no reader could make dates of them."""
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        try:
            pa.array([0], kind).to_pylist()
        except Exception as error:  # Arrow, zoneinfo and pytz have types of their own
            unknown = f"{shown(name)} holds times of the unknown zone {shown(kind.tz)}"
            raise UsageError(f"{source.name}: {unknown}; allowed: zones of the time zone database, such as UTC") from error
    if pa.types.is_nested(kind):
        for index in range(kind.num_fields):
            _check_zones(source, name, kind.field(index).type)


def _are_microseconds(source: Source, file: pq.ParquetFile, name: str, kind: pa.DataType) -> bool:
    """Whether a column of nanoseconds is one of microseconds, which is all that Python's times hold."""
    with parsing(source.name, _UNREADABLE):
        for batch in file.iter_batches(CHUNK_ROWS, columns=[name]):
            try:
                batch.column(0).cast(kind).cast(microseconds(kind))
            except pa.ArrowInvalid:
                return False
    return True


def _batch_rows(source: Source, data: DataConfig, kept: pq.ParquetFile, group: int) -> int:
    """How many rows of a row group to hold at once: fewer where they are long, or may be by the texts that rows refer to."""
    metadata = kept.metadata.row_group(group)
    if (size := metadata.total_byte_size) > data.max_row_group:
        allowed = f"{data.max_row_group}, or a higher data.max_row_group"
        raise UsageError(f"{source.name}: row group {group} has {size} bytes; allowed: {allowed}")
    for index in range(metadata.num_columns):
        chunk = metadata.column(index)
        most = (data.max_text + _BESIDE_VALUE) * chunk.num_values + BUFFER_BYTES
        if chunk.physical_type == "BYTE_ARRAY" and chunk.total_uncompressed_size > most:
            found = f"{chunk.path_in_schema} has {chunk.total_uncompressed_size} bytes in {chunk.num_values} values"
            raise UsageError(f"{source.name}: {found}; allowed: {data.max_text} bytes a value, or a higher data.max_text")
    with parsing(source.name, _UNREADABLE):
        head = next(kept.iter_batches(1, row_groups=[group]), None)
    longest = max([_longest(column) for column in head.columns], default=0) if head is not None else 0
    return int(max(1, min(CHUNK_ROWS, BATCH_BYTES / max(size / max(metadata.num_rows, 1), longest, 1.0))))


def _longest(column: pa.Array) -> int:
    """Bytes of the longest text in the dictionaries of a column, and in those of what is nested in it."""
    if isinstance(column, pa.DictionaryArray):
        kind = column.dictionary.type
        sized = is_text(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        return int(pc.max(pc.binary_length(column.dictionary)).as_py() or 0) if sized else 0
    if pa.types.is_struct(column.type):
        return max((_longest(column.field(index)) for index in range(column.type.num_fields)), default=0)
    return _longest(column.values) if pa.types.is_nested(column.type) else 0


def _piece(source: Source, data: DataConfig, rows: pa.Table, schema: pa.Schema, first: int) -> Piece:
    piece = Piece(source, {}, range(first + 1, first + rows.num_rows + 1))
    for field, column in zip(schema, rows.columns, strict=True):
        if (plain := plain_type(column.type)) is not None:
            if pa.types.is_duration(plain) and is_text(field.type):  # which Arrow does not cast
                column = pc.binary_join_element_wise(column.cast(pa.int64()).cast(pa.string()), "ns", " ")
            column = column.cast(field.type if is_nanoseconds(plain) else plain)
        _check_lengths(piece, data, field.name, column)
        column, faults = _readable(column)
        piece.columns[field.name] = column if column.type.equals(field.type) else texts(column.to_pylist())
        for row, reason in faults.items():
            piece.errors.setdefault(row, (field.name, reason))
    return piece


def _check_lengths(piece: Piece, data: DataConfig, name: str, column: pa.ChunkedArray) -> None:
    kind = column.type
    sized = is_text(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    lengths = pc.binary_length(column) if sized else None
    longest = 0 if lengths is None else pc.max(lengths).as_py() or 0
    if longest > data.max_text:
        place = piece.place(pc.index(lengths, longest).as_py())
        raise UsageError(f"{place}: {shown(name)} has {longest} bytes; allowed: {data.max_text}, or a higher data.max_text")


def _readable(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, dict[int, str]]:
    """A column with what can't be read replaced: in text faulty bytes by U+FFFD, other values by null; and why, by row."""
    with suppress(pa.ArrowException, ValueError, OverflowError):
        _check_readable(column)
        return column, {}
    faults: dict[int, str] = {}
    if is_text(column.type):
        values: list[bytes | None] = column.cast(pa.large_string()).cast(pa.large_binary()).to_pylist()
        for row, value in enumerate(values):
            try:
                (value or b"").decode()
            except UnicodeDecodeError as error:
                faults[row] = f"it is not UTF-8 text, from its byte {error.start} on"
        replaced = [None if value is None else value.decode(errors="replace") for value in values]
        return chunked(replaced, pa.large_string()).cast(column.type), faults
    for row in range(len(column)):
        try:
            _check_readable(column.take(pa.array([row])))
        except (pa.ArrowException, ValueError, OverflowError) as error:
            faults[row] = " ".join(str(error).split())
    kept = [None if row in faults else row for row in range(len(column))]
    return column.take(pa.array(kept, pa.int64())), faults


def _check_readable(column: pa.ChunkedArray) -> None:
    column.validate(full=True)
    if pa.types.is_nested(column.type) or pa.types.is_temporal(column.type):
        column.to_pylist()  # years after 9999 are valid, but none of Python's
