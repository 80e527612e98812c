"""The identity of a table's rows, of any files, and how two tables differ.

Rows are digested in blocks whose bounds depend on their position alone: one row each at first, then more and more. A record
holds three bytes of each block's digest, so a later run can say which rows were added and which changed first.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hybridiff.prompts.names import shown

SINGLE_ROWS = 2048  # at the beginning, a block each
BLOCKS = 512  # for each doubling of the rows beyond
_MARK = 3  # bytes


def block_end(start: int) -> int:
    """The end of the block of rows that begins at ``start``."""
    return start + 1 if start < SINGLE_ROWS else start + (SINGLE_ROWS << ((start // SINGLE_ROWS).bit_length() - 1)) // BLOCKS


class ContentDigest:
    """The digest of rows that come in pieces of any size; the pieces do not matter."""

    def __init__(self) -> None:
        self._start = 0
        self._rest: list[pa.Table] = []
        self._rows = 0  # in the rest
        self._sha256 = hashlib.sha256()
        self.marks: dict[str, bytearray] = {"keys": bytearray(), "values": bytearray()}

    def add(self, rows: pa.Table) -> None:
        """Digests more rows."""
        self._rest.append(rows)
        self._rows += rows.num_rows
        if self._start + self._rows < block_end(self._start):
            return
        table, used = pa.concat_tables(self._rest).combine_chunks(), 0
        while block_end(self._start) - self._start <= table.num_rows - used:
            count = block_end(self._start) - self._start
            self._digest(table.slice(used, count))
            used += count
        self._rest, self._rows = [table.slice(used)], table.num_rows - used

    def finish(self, schema: pa.Schema) -> str:
        """The digest (hex) of all rows and the types of their columns."""
        if self._rows:
            self._digest(pa.concat_tables(self._rest).combine_chunks())
        types = json.dumps([[field.name, str(field.type)] for field in schema])
        return hashlib.sha256(types.encode() + self._sha256.digest()).hexdigest()

    def summary(self) -> dict[str, str]:
        """Marks of the blocks, for a run record."""
        return {name: base64.b64encode(bytes(marks)).decode() for name, marks in self.marks.items()}

    def _digest(self, block: pa.Table) -> None:
        for name, digest in _digests(block, self._start).items():
            self._sha256.update(digest)
            self.marks[name] += digest[:_MARK]
        self._start += block.num_rows


def describe_differences(old: dict[str, Any], new: dict[str, Any], read: Callable[[int, int], pa.Table]) -> str:
    """How a table differs from the one that a corpus was started with, in words.

    Args:
        old: that one's rows, first_key, columns and ``ContentDigest.summary``
        new: the same of the present one
        read: reads rows of the present one, by first row and count
    """
    columns = _columns_differ(old["columns"], new["columns"])
    rows, were = new["rows"], old["rows"]
    keys_at, values_at = (None if columns else _first_difference(old, new, name, read) for name in ("keys", "values"))
    found = [*columns]
    if rows != were and values_at is None and not columns:
        added = f"{_rows(rows - were)} added after its {were}"
        found.append(added if rows > were else f"its last {_rows(were - rows)} removed")
    elif rows != were:
        found.append(f"it has {_rows(rows)}, and had {were}")
    if values_at is not None:
        found.append(f"the first that changed is {_named(values_at, min(rows, were), read)}")
    if keys_at is not None and old["first_key"] != new["first_key"]:
        first = f"of which the first was {shown(old['first_key'])} and is {shown(new['first_key'])}"
        found.append(f"its rows have other keys, {first} (where keys are made from its file's name, a renamed file renames them)")
    elif keys_at is not None and (values_at is None or keys_at < values_at):
        found.append(f"the first that has another key is {_named(keys_at, min(rows, were), read)}")
    return "; ".join(found) or "its rows differ"


def _columns_differ(old: dict[str, str], new: dict[str, str]) -> list[str]:
    found = [f"it has a new column {shown(name)}" for name in new if name not in old]
    found += [f"its column {shown(name)} is gone" for name in old if name not in new]
    return found + [f"its column {shown(n)} is {new[n]}, and was {old[n]}" for n in new if n in old and new[n] != old[n]]


def _first_difference(old: dict[str, Any], new: dict[str, Any], name: str, read: Callable[[int, int], pa.Table]) -> int | None:
    """The first row of the first block that differs; None if the rows that both tables have are alike."""
    ours, theirs = (base64.b64decode(one[name]) for one in (new, old))
    start, index, rows = 0, 0, min(old["rows"], new["rows"])
    while start < rows:
        end, mark = block_end(start), slice(_MARK * index, _MARK * (index + 1))
        here = ours[mark]
        if end > rows == old["rows"] < new["rows"]:  # rows were added in the middle of this block
            here = _digests(read(start, rows - start), start)[name][:_MARK]
        if here != theirs[mark] and (end <= rows or rows == old["rows"]):
            return start
        start, index = end, index + 1
    return None


def _named(start: int, rows: int, read: Callable[[int, int], pa.Table]) -> str:
    end = min(block_end(start), rows)
    first, last = (read(row, 1)["key"][0].as_py() for row in (start, end - 1))
    return (
        f"row {end}, key {shown(last)}"
        if end == start + 1
        else f"among rows {start + 1} to {end}, keys {shown(first)} to {shown(last)}"
    )


def _rows(count: int) -> str:
    return f"{count} row{'' if count == 1 else 's'}"


def _digests(block: pa.Table, start: int) -> dict[str, bytes]:
    digest = _digest_row if start < SINGLE_ROWS else _digest_block
    return {"keys": digest(block.select(["key"])), "values": digest(block.drop_columns(["key"]))}


def _digest_row(row: pa.Table) -> bytes:
    values = [list(one.values()) for one in row.to_pylist()]
    return hashlib.sha256(json.dumps(values, default=repr).encode()).digest()


def _digest_block(block: pa.Table) -> bytes:
    digest = hashlib.sha256()
    for column in block.columns:
        for data in _buffers(column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)):
            digest.update(data)
    return digest.digest()


def _buffers(array: pa.Array) -> Iterator[Any]:
    """What an array holds, as bytes that do not depend on offsets, nor on what lies where there are nulls."""
    yield np.packbits(array.is_valid().to_numpy(zero_copy_only=False)).tobytes()
    kind = array.type
    if pa.types.is_struct(kind):
        for child in array.flatten():
            yield from _buffers(child)
        return
    held = array.drop_null()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        yield pc.list_value_length(held).to_numpy().astype(np.int64).tobytes()
        yield from _buffers(held.flatten())
    elif pa.types.is_null(kind):
        return
    elif pa.types.is_boolean(kind):
        yield np.packbits(held.to_numpy(zero_copy_only=False)).tobytes()
    elif kind in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary()):
        offset_type = np.int64 if kind in (pa.large_string(), pa.large_binary()) else np.int32
        _, offsets, data = held.buffers()
        bounds = (
            np.frombuffer(offsets, offset_type)[held.offset : held.offset + len(held) + 1] if len(held) else np.zeros(1, np.int64)
        )
        yield np.diff(bounds).astype(np.int64).tobytes()
        yield memoryview(data)[bounds[0] : bounds[-1]] if data is not None else b""
    elif pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or pa.types.is_fixed_size_binary(kind):
        width = kind.bit_width // 8
        yield memoryview(held.buffers()[1])[held.offset * width : (held.offset + len(held)) * width] if len(held) else b""
    else:
        yield json.dumps(held.to_pylist(), default=repr).encode()
