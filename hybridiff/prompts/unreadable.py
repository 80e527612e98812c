"""Rows that hold what can't be read, such as bytes that are no text: found one by one, so that each fails alone."""

from contextlib import suppress
from typing import Any

import pyarrow as pa

from hybridiff.prompts.keys import shown
from hybridiff.prompts.kinds import chunked

Faults = dict[int, str]
"""By position of the row: why it is not as its file has it."""


def replace_unreadable(rows: pa.Table) -> tuple[pa.Table, Faults]:
    """The rows with what can't be read of them replaced: in text its faulty bytes by U+FFFD, any other value by null."""
    faults: Faults = {}
    for index, name in enumerate(rows.column_names):
        column, found = replace_in_column(rows[name])
        if found:
            rows = rows.set_column(index, name, column)
        for row, reason in found.items():
            faults.setdefault(row, f"{shown(name)} can't be read: {reason}")
    return rows, faults


def replace_in_column(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, Faults]:
    """A column, as ``replace_unreadable`` does it; it is the same if nothing is wrong with it."""
    if is_text(column.type):
        return (column, {}) if is_valid(column) else _replace_in_text(column)
    with suppress(pa.ArrowException, ValueError, OverflowError):
        column.validate(full=True)
        column.to_pylist()  # years after 9999 are valid, but none of Python's
        return column, {}
    faults: Faults = {}
    for row in range(len(column)):
        try:
            one = column.take(pa.array([row]))
            one.validate(full=True)
            one.to_pylist()
        except (pa.ArrowException, ValueError, OverflowError) as error:
            faults[row] = " ".join(str(error).split())
    return column.take(pa.array([None if row in faults else row for row in range(len(column))], pa.int64())), faults


def is_text(kind: pa.DataType) -> bool:
    """Whether a type is text, as such or from a dictionary."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_valid(column: pa.ChunkedArray | pa.Array) -> bool:
    """Whether all values are what their type says; looks at each."""
    with suppress(pa.ArrowInvalid):
        column.validate(full=True)
        return True
    return False


def _replace_in_text(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, Faults]:
    faults: Faults = {}
    values: list[Any] = column.cast(pa.large_string()).cast(pa.large_binary()).to_pylist()
    for row, value in enumerate(values):
        try:
            values[row] = None if value is None else value.decode()
        except UnicodeDecodeError as error:
            values[row] = value.decode(errors="replace")
            faults[row] = f"it is not UTF-8 text, from its byte {error.start} on"
    return chunked(values, pa.large_string()).cast(column.type), faults
