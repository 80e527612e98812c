"""Types of the user's columns: found out while the rows pass, one for each column of all sources together.

Cells are text. JSON scalars keep their type; a column of integers and floats holds floats where that is exact. Nested values, and
values of types that have no common one, become JSON text. Parquet keeps its types, but for dictionaries (their values), for those
that Hugging Face's data sets do not read (maps, views of lists, short decimals, extensions: JSON text) and nanoseconds.
"""

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from hybridiff.columns import RESERVED
from hybridiff.errors import UsageError
from hybridiff.prompts.names import MAX_COLUMNS, shown
from hybridiff.prompts.sources import CELL_FORMATS, Piece

SURROGATE = re.compile(r"[\ud800-\udfff]")
_EXACT = 1 << 53  # integers up to here are floats too
_SCALARS = {type(None): pa.null(), bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}


@dataclass
class _Seen:
    """What a column was seen to hold."""

    source: str
    types: set[pa.DataType] = field(default_factory=set)
    exact: bool = True  # whether all integers are floats too
    text: bool = False  # whether there are values that only JSON text holds

    def common(self) -> pa.DataType:
        """The type that holds all values."""
        kinds = self.types - {pa.null()}
        if len(kinds) <= 1 and not self.text:
            return next(iter(kinds), pa.null())
        numbers = [np.dtype(kind.to_pandas_dtype()) for kind in kinds if pa.types.is_integer(kind) or pa.types.is_floating(kind)]
        if self.text or len(numbers) < len(kinds):
            return pa.string()
        are_floats = {number.kind == "f" for number in numbers}
        if len(are_floats) == 2:
            return pa.float64() if self.exact else pa.string()
        common = np.result_type(*numbers)  # a float for integers without a common type
        return pa.from_numpy_dtype(common) if are_floats == {common.kind == "f"} else pa.string()


class ColumnTypes:
    """The user's columns, in order of appearance, and the types that hold all their values."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    @property
    def names(self) -> list[str]:
        """Names in the sources."""
        return list(self._seen)

    def declare(self, source: str, name: str, kind: pa.DataType) -> _Seen:
        """Adds a column of which no values are known yet.

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
        return seen

    def add(self, piece: Piece, name: str) -> pa.ChunkedArray:
        """A column of a piece as Arrow holds it until all have been seen."""
        values = piece.columns[name]
        if isinstance(values, pa.ChunkedArray):
            self.declare(piece.source.name, name, values.type)
            return values
        seen = self.declare(piece.source.name, name, pa.null())
        if piece.source.suffix in CELL_FORMATS:
            seen.types.add(pa.string())
            return text_column(piece, name, "text in Unicode")
        return _from_json(seen, values)

    def schema(self) -> list[pa.Field]:
        """The columns as the corpus stores them.

        Raises:
            UsageError: two would have one name; names a file.
        """
        for name in self._seen:
            if stored_name(name) != name and (other := self._seen.get(stored_name(name))):
                stored = f"{shown(stored_name(name))}, as which {shown(name)} is stored"
                raise UsageError(f"{other.source}: has a column {stored}; allowed: one of the two")
        return [pa.field(stored_name(name), seen.common()) for name, seen in self._seen.items()]


def stored_name(name: str) -> str:
    """A user column's name in the corpus."""
    return f"input_{name}" if name in RESERVED else name


def converted(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """A column as ``ColumnTypes.add`` gave it, in the type that holds all values; floats may have waited as JSON text."""
    if kind == pa.string() and not is_text(column.type):
        return texts(column.to_pylist())
    return column.cast(kind)


def chunked(values: Iterable[Any], kind: pa.DataType | None = None) -> pa.ChunkedArray:
    """Python values as an Arrow column, of any size."""
    array = pa.array(values, kind)
    return array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array])


def is_text(kind: pa.DataType) -> bool:
    """Whether a type is text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def texts(values: Iterable[Any]) -> pa.ChunkedArray:
    """Values as text: their JSON unless they are text."""
    return chunked(map(_as_text, values), pa.string())


def text_column(piece: Piece, name: str, allowed: str) -> pa.ChunkedArray:
    """A column of text and nulls.

    Raises:
        UsageError: a value is none that UTF-8 can hold; names the file and row.
    """
    column = piece.columns[name]
    if isinstance(column, pa.ChunkedArray) and (is_text(column.type) or pa.types.is_null(column.type)):
        return column.cast(pa.string())
    if isinstance(column, list):
        with suppress(UnicodeEncodeError, pa.ArrowTypeError):
            return chunked(column, pa.string())
    values = piece.values(name)
    for row, value in enumerate(values):
        if value is not None and (not isinstance(value, str) or SURROGATE.search(value)):
            raise UsageError(f"{piece.place(row)}: {name} is {shown(value)}; allowed: {allowed}")
    return chunked(values, pa.string())


def is_nanoseconds(kind: pa.DataType) -> bool:
    """Whether a type is times or durations in nanoseconds."""
    return getattr(kind, "unit", None) == "ns"


def microseconds(kind: pa.DataType) -> pa.DataType:
    """A type of nanoseconds in microseconds."""
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    return pa.duration("us") if pa.types.is_duration(kind) else pa.time64("us")


def plain_type(kind: pa.DataType) -> pa.DataType | None:
    """A type with values in place of dictionaries; None if Hugging Face's data sets do not read it."""
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        return pa.string() if pa.types.is_string_view(kind) else pa.binary()
    is_list, is_large = pa.types.is_list(kind), pa.types.is_large_list(kind)
    if pa.types.is_struct(kind):
        kinds = [plain_type(field.type) for field in kind]
        return (
            None
            if None in kinds or any(map(is_nanoseconds, kinds))
            else pa.struct([field.with_type(plain) for field, plain in zip(kind, kinds, strict=True)])
        )
    if is_list or is_large or pa.types.is_fixed_size_list(kind):
        if (plain := plain_type(kind.value_type)) is None or is_nanoseconds(plain):
            return None
        field = kind.value_field.with_type(plain)
        return pa.large_list(field) if is_large else pa.list_(field, -1 if is_list else kind.list_size)
    unread = pa.types.is_nested(kind) or pa.types.is_run_end_encoded(kind) or isinstance(kind, pa.BaseExtensionType)
    return None if unread or (pa.types.is_decimal(kind) and kind.bit_width < 128) else kind


def _from_json(seen: _Seen, values: Sequence[Any]) -> pa.ChunkedArray:
    """Scalars of one type as they are, else JSON text."""
    kinds = set(map(type, values)) - {type(None)}
    integers = [value for value in values if type(value) is int]
    seen.exact = seen.exact and all(-_EXACT <= value <= _EXACT for value in integers)
    kind = _SCALARS.get(next(iter(kinds), type(None))) if len(kinds) <= 1 else None
    if kind is not None:
        with suppress(UnicodeEncodeError, OverflowError):
            column = chunked(values, kind)
            seen.types.add(kind)
            return column
    if kinds == {int, float} and all(-(2**63) <= value < 2**63 for value in integers):
        seen.types |= {pa.int64(), pa.float64()}
    else:
        seen.text = True
    return texts(values)


def _as_text(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and not SURROGATE.search(value)):
        return value
    return json.dumps(value, default=str)
