"""The rows of a shard as JSON inside its tar, in a form of which readers infer the same types whatever is null."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from hybridiff.columns import IMAGE, NULL_COLUMNS, SCHEMA


class Sidecar:
    """Rows as JSON beside their images: all columns of text, numbers and truth values as they are; others as below.

    Dates, times, decimals and unsigned numbers of 64 bits, which readers take for signed ones, become text, nested values of the
    user's columns JSON text; binary values are left out, and NaN and infinities are null. Readers such as ``datasets`` infer a
    column's type from the first samples of a tar, and fail at a value of a column that was null in all of them. So the first JSON
    of a tar has the empty value of its type ("", 0, 0.0, false) for each null, and lists these columns under ``null_columns``.

    Args:
        schema: schema of the rows.
    """

    def __init__(self, schema: pa.Schema) -> None:
        kinds = {field.name: _plain(field.type) for field in schema if field.name != IMAGE.name}
        self._kinds = {name: kind for name, kind in kinds.items() if not _holds_bytes(kind)}
        self._nested = {name for name, kind in self._kinds.items() if pa.types.is_nested(kind) and name not in SCHEMA.names}
        self._as_text = {name for name, kind in self._kinds.items() if pa.types.is_uint64(kind)}
        self._first = True

    def encode(self, row: Mapping[str, Any], encoded: bytes | None = None) -> bytes:
        """The JSON of the tar's next row in UTF-8.

        Args:
            row: the row's values by column.
            encoded: its JSON, if it has been made before.
        """
        first, self._first = self._first, False
        if encoded is not None:
            return encoded
        values = {name: self._value(name, row[name]) for name in self._kinds}
        if first:
            nulls = [name for name, value in values.items() if value is None and not pa.types.is_null(self._kinds[name])]
            values |= {name: _empty(self._kinds[name]) for name in nulls}
            values |= {NULL_COLUMNS: nulls} if nulls else {}
        return json.dumps(values, ensure_ascii=False, default=str, allow_nan=False).encode()

    def _value(self, name: str, value: Any) -> Any:
        value = _finite(value)
        if value is None:
            return None
        if name in self._nested:
            return json.dumps(value, ensure_ascii=False, default=str)
        return str(value) if name in self._as_text else value


def _plain(kind: pa.DataType) -> pa.DataType:
    """A type without its encoding."""
    return _plain(kind.value_type) if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind) else kind


def _holds_bytes(kind: pa.DataType) -> bool:
    """Whether a type is binary, or has a binary type inside."""
    kind = _plain(kind)
    if pa.types.is_nested(kind):
        return any(_holds_bytes(kind.field(i).type) for i in range(kind.num_fields))
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def _empty(kind: pa.DataType) -> Any:
    """The value that stands for null where a reader infers types."""
    if pa.types.is_boolean(kind):
        return False
    if pa.types.is_integer(kind) and not pa.types.is_uint64(kind):
        return 0
    return 0.0 if pa.types.is_floating(kind) else ""


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value
