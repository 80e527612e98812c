"""Rows: what a prompt table asks for, checked and typed."""

import re
from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from hybridiff.columns import RESERVED
from hybridiff.config import DataConfig
from hybridiff.errors import UsageError
from hybridiff.prompts.keys import file_slugs, is_safe_key, key_limit, make_keys, shown, unsafe_key
from hybridiff.prompts.kinds import SURROGATE, chunked
from hybridiff.prompts.names import shown_names
from hybridiff.prompts.tables import CELL_FORMATS, Source, Table


@dataclass(frozen=True)
class Sample:
    """One requested image.

    Args:
        key: Unique in the corpus, safe as a file name on Linux.
        prompt: What to draw.
        negative_prompt: What not to draw, or None.
        seed: Of this image's noise, 0 <= seed < 2**63.
        columns: The user's own columns.
        error: Why it can't be drawn, if the row could not be read; what was wrong is replaced in the other values.
    """

    key: str
    prompt: str
    negative_prompt: str | None
    seed: int
    columns: dict[str, Any]
    error: str | None = None


@dataclass(frozen=True)
class Request:
    """What is read: the files in order, which of their columns, and how many images a row gets."""

    sources: Sequence[Source]
    data: DataConfig
    images: int

    @property
    def slugs(self) -> list[str]:
        """For each file, what the keys of its rows begin with, if they bring none."""
        return file_slugs([source.stem for source in self.sources])

    def refuse_empty(self) -> UsageError:
        """What is raised where no file has a row."""
        return UsageError(f"{', '.join(source.name for source in self.sources)}: no prompts; allowed: one row or more")


def own_rows(table: Table, data: DataConfig, slug: str, images: int, first: int = 0) -> pa.Table:
    """A table's checked key, prompt, negative_prompt and seed, under these names.

    Args:
        table: Consecutive rows of a file.
        data: Names of the columns.
        slug: What keys are made from if the table has none.
        images: Images per row.
        first: Position in the file of the table's first row.

    Raises:
        UsageError: A column is missing or a value is not allowed; names the file and row.
    """
    count = len(table.numbers)
    if count:
        check_columns(table.source, table.columns, data)
    negative, seed = ("negative_prompt" in table.columns, "seed" in table.columns)
    key = key_column(table.columns, data)
    columns: dict[str, list[Any]] = {
        "key": make_keys(slug, count, first) if key is None else check_keys(table, key, images),
        "prompt": check_texts(table, data.prompt_column) if count else [],
        "negative_prompt": check_texts(table, "negative_prompt", nullable=True) if negative else [None] * count,
        "seed": check_seeds(table) if seed else [None] * count,
    }
    return pa.table({name: chunked(values, pa.int64() if name == "seed" else pa.string()) for name, values in columns.items()})


def check_columns(source: Source, columns: Collection[str], data: DataConfig) -> None:
    """Raises ``UsageError`` where a file with rows lacks a column that is asked for."""
    for name in (data.prompt_column, data.key_column):
        if name is not None and name not in columns:
            raise UsageError(f"{source.name}: has no column {name!r}; columns there: {shown_names(columns)}")


def stored_name(name: str, places: dict[str, str]) -> str:
    """A user column's name in the corpus; ``places`` has a file for each name."""
    if SURROGATE.search(name):
        raise UsageError(f"{places[name]}: has a column {shown(name)}; allowed: names that UTF-8 can hold")
    if name not in RESERVED:
        return name
    stored = f"input_{name}"
    if stored in places:
        raise UsageError(
            f"{places[stored]}: has a column {shown(stored)}, as which {shown(name)} is stored; allowed: one of the two"
        )
    return stored


def key_column(columns: Container[str], data: DataConfig) -> str | None:
    """The column that holds the keys of a file with these columns; None if they are to be made."""
    return data.key_column or ("key" if "key" in columns and data.prompt_column != "key" else None)


def check_keys(table: Table, column: str, images: int) -> list[str]:
    """Given keys as text; raises ``UsageError`` at the first that is not allowed."""
    keys, limit = [], key_limit(images)
    for row, value in enumerate(table.values(column) if len(table.numbers) else []):
        if not isinstance(value, (str, int)) or isinstance(value, bool):
            raise _refuse(table, row, column, value, "text or an integer")
        key = str(value)
        if not is_safe_key(key, limit):
            raise unsafe_key(key, limit, table.place(row))
        keys.append(key)
    return keys


def check_texts(table: Table, column: str, nullable: bool = False) -> list[str | None]:
    """A column of text; raises ``UsageError`` at the first value that is none."""
    values = table.values(column)
    for row, value in enumerate(values):
        if not (isinstance(value, str) and not SURROGATE.search(value)) and not (nullable and value is None):
            raise _refuse(table, row, column, value, "text in Unicode" + (" or null" if nullable else ", not null"))
    return values


def check_seeds(table: Table) -> list[int | None]:
    """The column of seeds; raises ``UsageError`` at the first that is not allowed."""
    return [_seed(table, row, value) for row, value in enumerate(table.values("seed"))]


def _refuse(table: Table, row: int, name: str, value: object, allowed: str) -> UsageError:
    return UsageError(f"{table.place(row)}: {name} is {shown(value)}; allowed: {allowed}")


def _seed(table: Table, row: int, value: object) -> int | None:
    given = value
    if table.source.suffix in CELL_FORMATS and isinstance(value, str) and re.fullmatch("[0-9]{1,19}", value):
        given = int(value)
    if given is None or (isinstance(given, int) and not isinstance(given, bool) and 0 <= given < 2**63):
        return given
    raise _refuse(table, row, "seed", value, "an integer from 0 to 2**63 - 1, or null")
