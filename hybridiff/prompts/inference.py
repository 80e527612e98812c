"""Types of user columns that the values of text formats show."""

import contextlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hybridiff.prompts.kinds import chunked, unite

MOST_LEVELS = 16  # of lists and structs in each other; readers of Parquet end at 50 or so
MOST_FIELDS = 1000  # in one column


@dataclass
class CellKind:
    """The type of a column of cells, seen in pieces: numbers if each cell is as Python writes its number; else text.

    ``007``, ``1.50``, ``+5``, ``1e3`` and ``nan`` are text: as numbers they could not be had back as they were.

    Attributes:
        kind: Of all pieces together.
    """

    _empty: bool = True
    _integers: bool = True
    _floats: bool = True

    def add(self, cells: Sequence[str | None]) -> None:
        """Sees a piece."""
        text = chunked(cells, pa.string())
        self._empty = self._empty and text.null_count == len(text)
        self._integers = self._integers and _are_integers(text)
        self._floats = self._floats and _are_floats(text)

    @property
    def kind(self) -> pa.DataType:
        """Of all pieces together."""
        if self._empty:
            return pa.null()
        return pa.int64() if self._integers else pa.float64() if self._floats else pa.string()

    def certain(self) -> bool:
        """Whether all values are known to fit."""
        return True


_Path = tuple[str | None, ...]  # names of the objects that lead to a place, None for each list


@dataclass
class JsonKind:
    """The type of a column of JSON values, seen in pieces.

    It is text if they have no common type that Parquet holds, nest deeply, or hold objects in one place with different names.
    """

    _names: dict[_Path, tuple[str, ...]] = field(default_factory=dict)
    _kinds: set[pa.DataType] = field(default_factory=lambda: {pa.null()})
    _text: bool = False

    def add(self, values: Sequence[Any]) -> None:
        """Sees a piece."""
        self._text = self._text or not self._are_alike(values, ())
        if self._text:
            return
        try:
            self._kinds.add(chunked(values).type)
        except (pa.ArrowException, UnicodeError, OverflowError):
            self._text = True
        self._text = self._text or unite(self._kinds) is None

    def _are_alike(self, values: Iterable[Any], path: _Path) -> bool:
        """Whether objects in the same place have the same names: a common type would give each the names of all."""
        nested = [value for value in values if isinstance(value, (dict, list))]
        objects = [value for value in nested if isinstance(value, dict)]
        names = self._names.setdefault(path, tuple(objects[0])) if objects else ()
        if nested and (len(path) == MOST_LEVELS or len(self._names) > MOST_FIELDS or len(names) > MOST_FIELDS):
            return False
        if any(tuple(one) != names for one in objects):
            return False
        elements = [element for value in nested if isinstance(value, list) for element in value]
        return all(self._are_alike([one[name] for one in objects], (*path, name)) for name in names) and (
            not elements or self._are_alike(elements, (*path, None))
        )

    @property
    def kind(self) -> pa.DataType:
        """Of all pieces together."""
        kind = None if self._text else unite(self._kinds)
        return kind if kind is not None and _is_holdable(kind) else pa.string()

    def certain(self) -> bool:
        """Whether all values are known to fit; pieces of different types may yet not, as large integers among floats."""
        return self._text or self._kinds <= {pa.null(), self.kind}


def _is_holdable(kind: pa.DataType) -> bool:
    with contextlib.suppress(pa.ArrowException):
        file = pa.BufferOutputStream()
        pq.ParquetWriter(file, pa.schema([("values", kind)])).close()
        return len(pq.ParquetFile(pa.BufferReader(file.getvalue())).schema) <= MOST_FIELDS
    return False


def _are_integers(text: pa.ChunkedArray) -> bool:
    with contextlib.suppress(pa.ArrowInvalid):
        return bool(text.cast(pa.int64()).cast(pa.string()).equals(text))
    return False


def _are_floats(text: pa.ChunkedArray) -> bool:
    with contextlib.suppress(ValueError):
        return all(cell is None or (repr(float(cell)) == cell and math.isfinite(float(cell))) for cell in text.to_pylist())
    return False
