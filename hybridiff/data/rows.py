"""Rows: what a prompt table asks for, checked and typed."""

import contextlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hybridiff.config import DataConfig, UsageError
from hybridiff.data.keys import check_key, make_keys, shown
from hybridiff.data.tables import CELL_FORMATS, Table

OWN_COLUMNS = ("key", "prompt", "negative_prompt", "seed")
CORPUS_COLUMNS = (
    *OWN_COLUMNS, "status", "error", "file", "width", "height", "sha256", "guidance_scale", "steps", "scheduler", "model",
    "revision", "schedule", "steps_full", "steps_half", "steps_skipped", "tau1", "tau2", "discrepancy", "prompt_truncated",
)  # fmt: skip
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_NOT_A_NUMBER = r"^[+-]?(0[0-9]|[0-9]{16,}$)"  # Leading zeros and long digits are names: a float would change them.


@dataclass(frozen=True)
class Sample:
    """One requested image.

    Args:
        key: Unique in the corpus, safe as a file name.
        prompt: What to draw.
        negative_prompt: What not to draw, or None.
        seed: Of this image's noise, 0 <= seed < 2**63.
        columns: The user's own columns.
    """

    key: str
    prompt: str
    negative_prompt: str | None
    seed: int
    columns: dict[str, Any]


def own_rows(table: Table, data: DataConfig, slug: str, images: int) -> pa.Table:
    """A table's checked key, prompt, negative_prompt and seed, under these names; keys are made from ``slug`` if it has none.

    Raises:
        UsageError: A column is missing or a value is not allowed; names the file and row.
    """
    count = len(table.numbers)
    for name in (data.prompt_column, data.key_column):
        if count and name is not None and name not in table.columns:
            there = ", ".join(map(repr, table.columns))
            raise UsageError(f"{table.source.name}: has no column {name!r}; columns there: {there}")
    negative, seed = (table.values(name) if name in table.columns else [None] * count for name in ("negative_prompt", "seed"))
    key_column = _key_column(table, data)
    columns: dict[str, list[Any]] = {
        "key": make_keys(slug, count) if key_column is None else _keys(table, key_column, images),
        "prompt": _texts(table, data.prompt_column, table.values(data.prompt_column) if count else []),
        "negative_prompt": _texts(table, "negative_prompt", negative, nullable=True),
        "seed": [_seed(table, row, value) for row, value in enumerate(seed)],
    }
    return pa.table({name: chunked(values, pa.int64() if name == "seed" else pa.string()) for name, values in columns.items()})


def user_columns(tables: Sequence[Table], data: DataConfig) -> dict[str, pa.ChunkedArray]:
    """The further columns of all tables below each other, null where a table lacks one.

    Parquet's types stay, other formats get the types that their values show. Names of the corpus get ``input_`` in front.

    Raises:
        UsageError: A name can't be stored; names the file.
    """
    own = [{data.prompt_column, _key_column(table, data), "negative_prompt", "seed"} for table in tables]
    kept = [{n: v for n, v in table.columns.items() if n not in taken} for table, taken in zip(tables, own, strict=True)]
    places = {name: table.source.name for table, columns in zip(tables, kept, strict=True) for name in columns}
    united = {}
    for name in dict.fromkeys(name for columns in kept for name in columns):
        parts = [
            _typed(table, columns[name]) if name in columns else pa.nulls(len(table.numbers))
            for table, columns in zip(tables, kept, strict=True)
        ]
        united[_stored_name(name, places)] = _join(parts)
    return united


def _stored_name(name: str, places: dict[str, str]) -> str:
    """A user column's name in the corpus; ``places`` has a file for each name."""
    if _SURROGATE.search(name):
        raise UsageError(f"{places[name]}: has a column {shown(name)}; allowed: names that UTF-8 can hold")
    if name not in CORPUS_COLUMNS:
        return name
    stored = f"input_{name}"
    if stored in places:
        raise UsageError(f"{places[stored]}: has a column {stored!r}, as which {name!r} is stored; allowed: one of the two")
    return stored


def chunked(values: Iterable[Any], kind: pa.DataType | None = None) -> pa.ChunkedArray:
    """Python values as an Arrow column, of any size."""
    array = pa.array(values, kind)
    return array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array])


def _key_column(table: Table, data: DataConfig) -> str | None:
    return data.key_column or ("key" if "key" in table.columns and data.prompt_column != "key" else None)


def _refuse(table: Table, row: int, name: str, value: object, allowed: str) -> UsageError:
    return UsageError(f"{table.place(row)}: {name} is {shown(value)}; allowed: {allowed}")


def _keys(table: Table, column: str, images: int) -> list[str]:
    keys = []
    for row, value in enumerate(table.values(column) if len(table.numbers) else []):
        if not isinstance(value, (str, int)) or isinstance(value, bool):
            raise _refuse(table, row, column, value, "text or an integer")
        check_key(str(value), images, table.place(row))
        keys.append(str(value))
    return keys


def _texts(table: Table, column: str, values: list[Any], nullable: bool = False) -> list[str | None]:
    for row, value in enumerate(values):
        if not (isinstance(value, str) and not _SURROGATE.search(value)) and not (nullable and value is None):
            raise _refuse(table, row, column, value, "text in Unicode" + (" or null" if nullable else ", not null"))
    return values


def _seed(table: Table, row: int, value: object) -> int | None:
    given = value
    if table.source.suffix in CELL_FORMATS and isinstance(value, str) and re.fullmatch("[0-9]{1,19}", value):
        given = int(value)
    if given is None or (isinstance(given, int) and not isinstance(given, bool) and 0 <= given < 2**63):
        return given
    raise _refuse(table, row, "seed", value, "an integer from 0 to 2**63 - 1, or null")


def _typed(table: Table, values: list[Any] | pa.ChunkedArray) -> pa.ChunkedArray:
    if isinstance(values, pa.ChunkedArray):
        return _in_microseconds(values)
    return _infer_numbers(values) if table.source.suffix in CELL_FORMATS else _infer(values)


def _in_microseconds(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Python's times hold no nanoseconds: such timestamps become microseconds, or text where that would round them."""
    if not (pa.types.is_timestamp(column.type) and column.type.unit == "ns"):
        return column
    try:
        return column.cast(pa.timestamp("us", column.type.tz))
    except pa.ArrowInvalid:
        return column.cast(pa.string())


def _infer(values: list[Any]) -> pa.ChunkedArray:
    """JSON values as a column; as text if they have no common type that Parquet holds, or are objects with different names."""
    if len({tuple(value) for value in values if isinstance(value, dict)}) <= 1:
        with contextlib.suppress(pa.ArrowException, UnicodeError, OverflowError):
            column = chunked(values)
            pq.ParquetWriter(pa.BufferOutputStream(), pa.schema([("values", column.type)])).close()
            return column
    return chunked(map(_as_text, values), pa.string())


def _infer_numbers(cells: list[str | None]) -> pa.ChunkedArray:
    """Cells as integers or floats if all are, and nothing is lost by it; else as text."""
    text = chunked(cells, pa.string())
    if text.null_count == len(text):
        return chunked(cells, pa.null())
    with contextlib.suppress(pa.ArrowInvalid):
        integers = text.cast(pa.int64())
        if integers.cast(pa.string()).equals(text):
            return integers
    with contextlib.suppress(pa.ArrowInvalid):
        if not pc.any(pc.match_substring_regex(text, _NOT_A_NUMBER)).as_py():
            return text.cast(pa.float64())
    return text


def _join(columns: list[pa.ChunkedArray | pa.Array]) -> pa.ChunkedArray:
    """Columns below each other, in a type that holds all of them; as text if there is none."""
    with contextlib.suppress(pa.ArrowException):
        kind = pa.unify_schemas([pa.schema([("", c.type)]) for c in columns], promote_options="permissive").field(0).type
        return _stack([column.cast(kind) for column in columns], kind)
    return _stack([chunked(map(_as_text, column.to_pylist()), pa.string()) for column in columns], pa.string())


def _stack(columns: list[pa.ChunkedArray], kind: pa.DataType) -> pa.ChunkedArray:
    chunks = [chunk for column in columns for chunk in (column.chunks if isinstance(column, pa.ChunkedArray) else [column])]
    return pa.chunked_array(chunks, kind)


def _as_text(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and not _SURROGATE.search(value)):
        return value
    return json.dumps(value, default=str)
