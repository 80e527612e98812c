"""Rows of large prompt tables, found by position when they are asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from hybridiff.columns import PROMPT_COLUMNS
from hybridiff.prompts.kinds import texts, unite_exactly
from hybridiff.prompts.names import check_columns_together
from hybridiff.prompts.parts import Part
from hybridiff.prompts.rows import stored_name
from hybridiff.prompts.scan import fits
from hybridiff.prompts.tables import CELL_FORMATS


@dataclass(frozen=True)
class UserColumn:
    """A user's column over all files.

    Args:
        name: In the files.
        stored: In the corpus.
        kind: Type that holds all files' values.
        as_text: Whether there is no such type but text.
    """

    name: str
    stored: str
    kind: pa.DataType
    as_text: bool

    def of(self, columns: dict[str, pa.ChunkedArray], count: int) -> pa.ChunkedArray:
        """The column's values in ``count`` rows of a file; null where the file lacks it."""
        if self.name not in columns:
            return pa.chunked_array([pa.nulls(count, self.kind)])
        column = columns[self.name]
        return texts(column.to_pylist()) if self.as_text else column.cast(self.kind)


class StreamedRows:
    """The rows of some parts below each other; nothing of them is held.

    Args:
        parts: The files.
        columns: The user's columns.
        content: Identity of the rows.
        keep: Anything that has to live as long as the parts are read.
        discard: Removes the copies that this process has made where others find them.

    Attributes:
        count: Rows.
        schema: Of key, prompt, negative_prompt, seed and the user's columns.
        content: As given.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        columns: Sequence[UserColumn],
        content: str,
        keep: object = None,
        discard: Callable[[], None] = lambda: None,
    ) -> None:
        self.parts = tuple(parts)
        self.columns = tuple(columns)
        self.content = content
        self.count: int = sum(part.rows for part in parts)
        own = [(name, pa.int64() if name == "seed" else pa.string()) for name in PROMPT_COLUMNS]
        self.schema = pa.schema(own + [(column.stored, column.kind) for column in columns])
        self._keep, self.discard = keep, discard

    def read(self, first: int, count: int) -> list[dict[str, Any]]:
        """Rows from ``first`` on; one that can't be read has the reason under ``error``.

        Raises:
            UsageError: A file is not as it was when planned.
        """
        rows: list[dict[str, Any]] = []
        start = 0
        for part in self.parts:
            begin, end = max(first - start, 0), min(first + count - start, part.rows)
            if begin < end:
                own, user, faults = part.read(begin, end - begin)
                values = {column.stored: column.of(user, end - begin) for column in self.columns}
                found = pa.table({name: own[name] for name in PROMPT_COLUMNS} | values).to_pylist()
                for row, reason in faults.items():
                    found[row]["error"] = reason
                rows += found
            start += part.rows
        assert len(rows) == count, f"{len(rows)} rows of {count}"
        return rows


def unite_columns(parts: Sequence[Part]) -> list[UserColumn]:
    """The user's columns of all parts, in types that hold all of their values; values are only read where that is not sure.

    Raises:
        UsageError: A name can't be stored; names the file.
    """
    places = {name: part.source.name for part in parts for name in part.kinds}
    check_columns_together(places)
    columns = []
    for name in dict.fromkeys(name for part in parts for name in part.kinds):
        kinds = [part.kinds.get(name, pa.null()) for part in parts]
        cells = [kind for kind, part in zip(kinds, parts, strict=True) if part.source.suffix in CELL_FORMATS]
        kind = unite_exactly(kinds, cells)
        as_text = kind is None or not all(fits(part, name, kind) for part in parts if name in part.kinds)
        columns.append(UserColumn(name, stored_name(name, places), pa.string() if kind is None or as_text else kind, as_text))
    return columns
