"""Rows: the columns with a meaning (key, prompt, negative_prompt, seed) of a piece of a table, checked and typed."""

import re
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hybridiff.columns import RESERVED
from hybridiff.config import DataConfig
from hybridiff.errors import UsageError
from hybridiff.prompts.column_types import SURROGATE, chunked, is_text
from hybridiff.prompts.keys import given_keys, make_keys
from hybridiff.prompts.names import check_columns, check_meanings, key_column, shown
from hybridiff.prompts.sources import CELL_FORMATS
from hybridiff.prompts.text_formats import Piece

_SEEDS = "an integer from 0 to 2**63 - 1, or null"


@dataclass(frozen=True)
class Sample:
    """One requested image.

    Args:
        key: unique in the corpus, safe as a file name on Linux
        prompt: text of the image
        negative_prompt: text to keep away from, or None
        seed: seed of this image's noise, 0 <= seed < 2**63
        columns: the user's own columns
        error: why it can't be generated, if the row could not be read; what was wrong is replaced in the other values
    """

    key: str
    prompt: str
    negative_prompt: str | None
    seed: int
    columns: dict[str, Any]
    error: str | None = None


@dataclass(frozen=True)
class OwnRows:
    """The checked columns of a piece.

    Args:
        table: key, prompt, negative_prompt and seed
        makes_keys: whether the keys were made from file name and row
        used: columns of the piece that these are
        empty_prompts: rows without a prompt
    """

    table: pa.Table
    makes_keys: bool
    used: Container[str]
    empty_prompts: int


def own_rows(piece: Piece, data: DataConfig, slug: str, images: int, first: int) -> OwnRows:
    """The checked columns of a piece.

    Args:
        piece: consecutive rows of a source
        data: names of the columns
        slug: what keys are made from if the source has none
        images: images per row
        first: position in the source of the piece's first row

    Raises:
        UsageError: a column is missing or a value is not allowed; names the file and row.
    """
    name, count = piece.source.name, len(piece.numbers)
    check_meanings(name, piece.columns, data)
    if count:
        check_columns(name, piece.columns, data)
    key = key_column(piece.columns, data)
    prompts, empty = _prompts(piece, data) if count else (chunked([], pa.string()), 0)
    keys = pa.array(make_keys(slug, count, first), pa.string()) if key is None or not count else given_keys(piece, key, images)
    nothing = pa.nulls(count, pa.string())
    table = pa.table(
        {
            "key": keys,
            "prompt": prompts,
            "negative_prompt": _texts(piece, "negative_prompt") if "negative_prompt" in piece.columns else nothing,
            "seed": _seeds(piece) if "seed" in piece.columns else pa.nulls(count, pa.int64()),
        }
    )
    used = {data.prompt_column, "negative_prompt", "seed"} | ({key} if key else set())
    return OwnRows(table, key is None, used, empty)


def stored_name(name: str, places: dict[str, str]) -> str:
    """A user column's name in the corpus; ``places`` has a file for each name."""
    if name not in RESERVED:
        return name
    stored = f"input_{name}"
    if stored in places:
        raise UsageError(
            f"{places[stored]}: has a column {shown(stored)}, as which {shown(name)} is stored; allowed: one of the two"
        )
    return stored


def _prompts(piece: Piece, data: DataConfig) -> tuple[pa.ChunkedArray, int]:
    """The prompts, and how many of them are empty."""
    column, name = _texts(piece, data.prompt_column), data.prompt_column
    if data.empty_prompts == "refuse":
        empty = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True)
        if (row := pc.index(empty, True).as_py()) >= 0:
            value, allowed = column[row].as_py(), "text in Unicode, not null" if column[row].as_py() is None else "text"
            raise UsageError(f"{piece.place(row)}: {name} is {shown(value)}; allowed: {allowed}, or data.empty_prompts=allow")
        return column, 0
    column = pc.fill_null(column, "")
    return column, int(pc.sum(pc.equal(pc.utf8_trim_whitespace(column), "")).as_py() or 0)


def _texts(piece: Piece, name: str) -> pa.ChunkedArray:
    """A column of text and nulls."""
    column = piece.columns[name]
    if isinstance(column, pa.ChunkedArray) and (is_text(column.type) or pa.types.is_null(column.type)):
        return column.cast(pa.string())
    values = piece.values(name)
    for row, value in enumerate(values):
        if value is not None and not (isinstance(value, str) and not SURROGATE.search(value)):
            allowed = "text in Unicode" + (" or null" if name == "negative_prompt" else ", not null")
            raise UsageError(f"{piece.place(row)}: {name} is {shown(value)}; allowed: {allowed}")
    return chunked(values, pa.string())


def _seeds(piece: Piece) -> pa.ChunkedArray:
    column = piece.columns["seed"]
    if isinstance(column, pa.ChunkedArray) and pa.types.is_integer(column.type):
        bounds = pc.min_max(column)
        least, largest = bounds["min"].as_py(), bounds["max"].as_py()
        if least is None or (least >= 0 and largest < 2**63):
            return column.cast(pa.int64())
    return chunked([_seed(piece, row, value) for row, value in enumerate(piece.values("seed"))], pa.int64())


def _seed(piece: Piece, row: int, value: object) -> int | None:
    """A seed; whole floats are taken, as tables with empty cells have them, where they are exact."""
    given = value
    if piece.source.suffix in CELL_FORMATS and isinstance(value, str) and re.fullmatch(r"[0-9]{1,19}(\.0+)?", value):
        given = int(value.partition(".")[0])
    if isinstance(value, float):
        given = None if value != value else int(value) if value.is_integer() and abs(value) <= 2**53 else value
    if given is None or (isinstance(given, int) and not isinstance(given, bool) and 0 <= given < 2**63):
        return given
    raise UsageError(f"{piece.place(row)}: seed is {shown(value)}; allowed: {_SEEDS}")
