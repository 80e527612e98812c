"""Types of user columns, and values in them."""

import contextlib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

_READ = (
    pa.types.is_null,
    pa.types.is_boolean,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_decimal128,
    pa.types.is_decimal256,
    pa.types.is_temporal,
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)
SURROGATE = re.compile(r"[\ud800-\udfff]")


def chunked(values: Iterable[Any], kind: pa.DataType | None = None) -> pa.ChunkedArray:
    """Python values as an Arrow column, of any size."""
    array = pa.array(values, kind)
    return array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array])


def unite(kinds: Iterable[pa.DataType]) -> pa.DataType | None:
    """The type that holds all of these; None if there is none."""
    with contextlib.suppress(pa.ArrowException):
        return pa.unify_schemas([pa.schema([("", kind)]) for kind in kinds], promote_options="permissive").field(0).type
    return None


def unite_exactly(kinds: Iterable[pa.DataType], of_cells: Iterable[pa.DataType]) -> pa.DataType | None:
    """As ``unite``; None also where a column of cells (whose kinds are ``of_cells``, among the others) would be written anew."""
    kind = unite(kinds)
    kept = {pa.null(), pa.string(), kind}
    return kind if all(cells in kept for cells in of_cells) else None


def typed_values(values: Sequence[Any], is_cell: bool, kind: pa.DataType) -> pa.ChunkedArray:
    """Values of a text format in the type that their column has."""
    if is_cell and not pa.types.is_null(kind):
        return chunked(values, pa.string()).cast(kind)
    return texts(values) if kind == pa.string() else chunked(values, kind)


def has_readers(kind: pa.DataType) -> bool:
    """Whether Hugging Face's data sets have a type: they have no maps, views of lists, short decimals and extensions."""
    if isinstance(kind, pa.StructType):
        return all(has_readers(field.type) for field in kind)
    if isinstance(kind, (pa.ListType, pa.LargeListType, pa.FixedSizeListType, pa.DictionaryType)):
        return has_readers(kind.value_type)
    return any(is_one(kind) for is_one in _READ)


def readable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of a Parquet file in a type that Python and readers of the corpus have: as text if there is no other."""
    return in_microseconds(column) if has_readers(column.type) else texts(column.to_pylist())


def cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """A column of a Parquet file in another type, which is text for types that have no readers."""
    return (column if has_readers(column.type) else texts(column.to_pylist())).cast(kind)


def in_microseconds(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Python's times hold no nanoseconds: such timestamps become microseconds, or text where that would round them."""
    if not is_nanoseconds(column.type):
        return column
    try:
        return column.cast(pa.timestamp("us", column.type.tz))
    except pa.ArrowInvalid:
        return column.cast(pa.string())


def is_nanoseconds(kind: pa.DataType) -> bool:
    """Whether a type is a timestamp of nanoseconds."""
    return bool(pa.types.is_timestamp(kind) and kind.unit == "ns")


def joined(columns: list[pa.ChunkedArray | pa.Array], are_cells: Sequence[bool]) -> pa.ChunkedArray:
    """Columns below each other, in a type that holds all of them; as text if there is none."""
    cells = [column.type for column, is_cell in zip(columns, are_cells, strict=True) if is_cell]
    kind = unite_exactly((column.type for column in columns), cells)
    if kind is not None:
        with contextlib.suppress(pa.ArrowException):
            return _stack([column.cast(kind) for column in columns], kind)
    return _stack([texts(column.to_pylist()) for column in columns], pa.string())


def texts(values: Iterable[Any]) -> pa.ChunkedArray:
    """Values as text: their JSON unless they are text."""
    return chunked(map(_as_text, values), pa.string())


def _stack(columns: list[pa.ChunkedArray | pa.Array], kind: pa.DataType) -> pa.ChunkedArray:
    chunks = [chunk for column in columns for chunk in (column.chunks if isinstance(column, pa.ChunkedArray) else [column])]
    return pa.chunked_array(chunks, kind)


def _as_text(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and not SURROGATE.search(value)):
        return value
    return json.dumps(value, default=str)
