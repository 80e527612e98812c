"""Types of the user's columns: found out while the rows pass, one for each column of all sources together.

Cells are text. JSON scalars keep their type; a column of integers and floats holds floats where that is exact. Nested values, and
values of types that have no common one, become JSON text. Parquet keeps its types, but for dictionaries (their values), for those
that Hugging Face's data sets do not read (maps, views of lists, short decimals, extensions: JSON text) and nanoseconds.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from hybridiff.errors import UsageError
from hybridiff.prompts.names import MAX_COLUMNS, shown
from hybridiff.prompts.sources import CELL_FORMATS
from hybridiff.prompts.text_formats import Piece

SURROGATE = re.compile(r"[\ud800-\udfff]")
_EXACT = 1 << 53  # integers up to here are floats too
_NUMBERS = {b"json": b"numbers"}  # metadata of a column that holds integers and floats as JSON text
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


@dataclass
class _Seen:
    """What a column was seen to hold."""

    source: str
    types: set[pa.DataType] = field(default_factory=set)
    exact: bool = True  # whether all integers are floats too
    text: bool = False  # whether there are values that only JSON text holds


class ColumnTypes:
    """The user's columns, in order of appearance, and the types that hold all their values."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def declare(self, source: str, name: str, kind: pa.DataType) -> None:
        """Adds a column whose type is known before its values.

        Raises:
            UsageError: these are too many columns, or its name can't be stored.
        """
        if SURROGATE.search(name):
            raise UsageError(f"{source}: has a column {shown(name)}; allowed: names that UTF-8 can hold")
        seen = self._seen.setdefault(name, _Seen(source))
        seen.types.add(kind)
        seen.exact = seen.exact and not (pa.types.is_integer(kind) and kind.bit_width > 32)
        if len(self._seen) > MAX_COLUMNS:
            raise UsageError(
                f"{source}: brings the files to more than {MAX_COLUMNS} columns; allowed: {MAX_COLUMNS} in all together"
            )

    def add(self, piece: Piece, name: str) -> tuple[pa.Field, pa.ChunkedArray]:
        """A column of a piece as Arrow holds it until all have been seen."""
        values = piece.columns[name]
        if isinstance(values, pa.ChunkedArray):
            self.declare(piece.source.name, name, values.type)
            return pa.field(name, values.type), values
        self.declare(piece.source.name, name, pa.null())
        seen = self._seen[name]
        if piece.source.suffix in CELL_FORMATS:
            column, marker = as_text(piece, name, values), None
        else:
            column, marker = self._add_json(seen, values)
        seen.types |= {pa.int64(), pa.float64()} if marker else {column.type}
        return pa.field(name, column.type, metadata=marker), column

    def _add_json(self, seen: _Seen, values: Sequence[Any]) -> tuple[pa.ChunkedArray, dict[bytes, bytes] | None]:
        kinds = set(map(type, values)) - {type(None)}
        integers = [value for value in values if type(value) is int]
        seen.exact = seen.exact and all(-_EXACT <= value <= _EXACT for value in integers)
        if kinds == {int, float} and all(-(2**63) <= value < 2**63 for value in integers):
            return texts(values), _NUMBERS
        column, is_json = _scalars(values, kinds)
        seen.text = seen.text or is_json
        return column, None

    def schema(self) -> pa.Schema:
        """Names in the sources and types of all columns."""
        return pa.schema([(name, _common(seen)) for name, seen in self._seen.items()])

    def source(self, name: str) -> str:
        """A source that has a column."""
        return self._seen[name].source


def converted(column: pa.ChunkedArray, field: pa.Field, kind: pa.DataType) -> pa.ChunkedArray:
    """A column as ``ColumnTypes.add`` gave it, in the type that holds all values."""
    if field.type == kind:
        return column
    if field.metadata == _NUMBERS:
        return chunked([None if value is None else float(json.loads(value)) for value in column.to_pylist()], kind)
    if pa.types.is_null(field.type):
        return pa.chunked_array([pa.nulls(len(column), kind)])
    if kind == pa.string() and not is_text(field.type):
        return texts(column.to_pylist())
    return column.cast(kind)


def chunked(values: Iterable[Any], kind: pa.DataType | None = None) -> pa.ChunkedArray:
    """Python values as an Arrow column, of any size."""
    array = pa.array(values, kind)
    return array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array])


def is_text(kind: pa.DataType) -> bool:
    """Whether a type is text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def texts(values: Iterable[Any]) -> pa.ChunkedArray:
    """Values as text: their JSON unless they are text."""
    return chunked(map(_as_text, values), pa.string())


def has_readers(kind: pa.DataType) -> bool:
    """Whether Hugging Face's data sets read a type."""
    if isinstance(kind, pa.StructType):
        return all(has_readers(field.type) for field in kind)
    if isinstance(kind, (pa.ListType, pa.LargeListType, pa.FixedSizeListType, pa.DictionaryType)):
        return has_readers(kind.value_type)
    return any(is_one(kind) for is_one in _READ)


def as_text(piece: Piece, name: str, values: Sequence[Any]) -> pa.ChunkedArray:
    """A column of text.

    Raises:
        UsageError: a value is none that UTF-8 can hold; names the file and row.
    """
    try:
        return chunked(values, pa.string())
    except UnicodeEncodeError:
        row = next(row for row, value in enumerate(values) if value and SURROGATE.search(value))
        raise UsageError(f"{piece.place(row)}: {shown(name)} is {shown(values[row])}; allowed: text in Unicode") from None


def _scalars(values: Sequence[Any], kinds: set[type]) -> tuple[pa.ChunkedArray, bool]:
    """Values of one type as it is, else JSON text; and whether they are."""
    known = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
    if not kinds:
        return chunked(values, pa.null()), False
    if len(kinds) == 1 and (kind := known.get(next(iter(kinds)))) is not None:
        try:
            return chunked(values, kind), False
        except (UnicodeEncodeError, OverflowError):
            pass
    return texts(values), True


def _common(seen: _Seen) -> pa.DataType:
    kinds = sorted(seen.types - {pa.null()}, key=str)
    if seen.text:
        return pa.string()
    if len(kinds) <= 1:
        return kinds[0] if kinds else pa.null()
    integers = [kind for kind in kinds if pa.types.is_integer(kind)]
    floats = [kind for kind in kinds if pa.types.is_floating(kind)]
    if len(integers) + len(floats) < len(kinds):
        return pa.string()
    if not floats:
        return _common_integer(integers)
    if not integers:
        return max(floats, key=lambda kind: kind.bit_width)
    return pa.float64() if seen.exact else pa.string()


def _common_integer(kinds: list[pa.DataType]) -> pa.DataType:
    signed = max((kind.bit_width for kind in kinds if pa.types.is_signed_integer(kind)), default=0)
    unsigned = max((kind.bit_width for kind in kinds if pa.types.is_unsigned_integer(kind)), default=0)
    if signed == 0:
        return {8: pa.uint8(), 16: pa.uint16(), 32: pa.uint32(), 64: pa.uint64()}[unsigned]
    width = max(signed, 2 * unsigned)
    return {8: pa.int8(), 16: pa.int16(), 32: pa.int32(), 64: pa.int64()}.get(width, pa.string())


def _as_text(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and not SURROGATE.search(value)):
        return value
    return json.dumps(value, default=str)
