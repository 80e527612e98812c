"""Rows: the columns with a meaning (key, prompt, negative_prompt, seed) of a piece of a table, checked and typed.

Keys name images: unique in the corpus and safe as file names on Linux and in object storage. Seeds belong to samples: no batch,
group or resume changes one.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hybridiff.config import DataConfig
from hybridiff.errors import UsageError
from hybridiff.prompts.column_types import SURROGATE, chunked, is_text, text_column
from hybridiff.prompts.names import key_column, shown
from hybridiff.prompts.sources import CELL_FORMATS, Piece

KEY_BYTES = 200
SEED_BITS = 63
_UNSAFE = r"[/\\.\x00-\x1f\x7f-\x{9f}]"  # as RE2 writes it
_KEYS = "text or an integer"
_SLUG_CHARACTERS = 80


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


def own_columns(
    piece: Piece, data: DataConfig, slug: str, images: int, first: int, negative_prompts: str | None = None
) -> list[pa.ChunkedArray]:
    """Key, prompt, negative_prompt and seed of a piece's rows.

    Args:
        piece: consecutive rows of a source
        data: names of the columns
        slug: first part of the keys, if the source has none
        images: images per row
        first: position in the source of the piece's first row
        negative_prompts: what is allowed in place of negative prompts where they change nothing

    Raises:
        UsageError: a value is not allowed; names the file and row.
    """
    key, count = key_column(piece.columns, data), len(piece.numbers)
    nothing = pa.chunked_array([pa.nulls(count, pa.string())])
    made = (f"{slug}-{row:08d}" for row in range(first, first + count))
    prompts = _prompts(piece, data)
    return [
        chunked(made, pa.string()) if key is None else _keys(piece, key, images),
        prompts,
        _negative_prompts(piece, negative_prompts) if "negative_prompt" in piece.columns else nothing,
        _seeds(piece) if "seed" in piece.columns else nothing.cast(pa.int64()),
    ]


def file_slugs(stems: Sequence[str]) -> list[str]:
    """A name for each file, made of its stem; files that would share one get their position appended."""
    slugs = [re.sub(r"[^a-z0-9_]+", "-", stem.lower())[:_SLUG_CHARACTERS].strip("-") or "prompts" for stem in stems]
    counts = Counter(slugs)
    return [slug if counts[slug] == 1 else f"{slug}-{position}" for position, slug in enumerate(slugs)]


def image_suffix(index: int, images: int) -> str:
    """What is appended to a row's key for image ``index`` of ``images``; of fixed width, so that unique keys stay unique."""
    return "" if images == 1 else f"-{index:0{len(str(images - 1))}d}"


def image_seed(job_seed: int, key: str, index: int) -> int:
    """Seed of a row's image ``index``, 0 <= seed < 2**63, from the job's seed and the row's key."""
    # Numbers hold no NUL, so the parts can't run into each other.
    digest = hashlib.sha256(f"{job_seed}\0{index}\0{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - SEED_BITS)


def given_seed(row_seed: int, index: int) -> int:
    """Seed of image ``index`` of a row that brings its own seed."""
    return (row_seed + index) % (1 << SEED_BITS)


def is_empty(prompts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whether texts are empty but for whitespace; null of null."""
    return pc.equal(pc.utf8_trim_whitespace(prompts), "")


def _prompts(piece: Piece, data: DataConfig) -> pa.ChunkedArray:
    name = data.prompt_column
    column = text_column(piece, name, "text in Unicode, not null")
    if data.empty_prompts == "allow":
        return pc.fill_null(column, "")
    if (row := pc.index(pc.fill_null(is_empty(column), True), True).as_py()) >= 0:
        value = column[row].as_py()
        allowed = "text in Unicode, not null" if value is None else "text"
        raise UsageError(f"{piece.place(row)}: {name} is {shown(value)}; allowed: {allowed}, or data.empty_prompts=allow")
    return column


def _negative_prompts(piece: Piece, allowed: str | None) -> pa.ChunkedArray:
    column = text_column(piece, "negative_prompt", "text in Unicode or null")
    if allowed is not None and (row := pc.index(pc.fill_null(is_empty(column), True), False).as_py()) >= 0:
        raise UsageError(f"{piece.place(row)}: negative_prompt is {shown(column[row].as_py())}; allowed: {allowed}")
    return column


def _keys(piece: Piece, column: str, images: int) -> pa.ChunkedArray:
    """Given keys as text. They leave room for the images' suffixes; Windows and macOS may refuse more of them."""
    values, limit = piece.columns[column], KEY_BYTES - len(image_suffix(0, images))
    safe = f"1 to {limit} bytes in UTF-8 without / \\ . and control characters (WebDataset ends a key at its first dot)"
    for row, (unread, _) in piece.errors.items():
        if unread == column:
            raise UsageError(f"{piece.place(row)}: {piece.error(row)}")
    if isinstance(values, list) or not (is_text(values.type) or pa.types.is_integer(values.type)):
        given = piece.values(column)
        for row, value in enumerate(given):
            is_key = isinstance(value, (str, int)) and not isinstance(value, bool)
            if not is_key or SURROGATE.search(str(value)):
                raise UsageError(f"{piece.place(row)}: {column} is {shown(value)}; allowed: {safe if is_key else _KEYS}")
        values = chunked(map(str, given), pa.string())
    keys = values.cast(pa.string())
    lengths = pc.binary_length(keys)
    refused = pc.or_(pc.match_substring_regex(keys, _UNSAFE), pc.or_(pc.less(lengths, 1), pc.greater(lengths, limit)))
    if (row := pc.index(pc.fill_null(refused, True), True).as_py()) >= 0:
        key = keys[row].as_py()
        raise UsageError(f"{piece.place(row)}: {column} is {shown(key)}; allowed: {_KEYS if key is None else safe}")
    return keys


def _seeds(piece: Piece) -> pa.ChunkedArray:
    column = piece.columns["seed"]
    if isinstance(column, pa.ChunkedArray) and pa.types.is_integer(column.type):
        least, largest = pc.min_max(column).as_py().values()
        if least is None or (least >= 0 and largest < 1 << SEED_BITS):
            return column.cast(pa.int64())
    width = column.type.bit_width if isinstance(column, pa.ChunkedArray) and pa.types.is_floating(column.type) else 64
    exact = 1 << {16: 11, 32: 24, 64: 53}[width]  # integers up to here are floats of this width too
    return chunked([_seed(piece, row, value, exact) for row, value in enumerate(piece.values("seed"))], pa.int64())


def _seed(piece: Piece, row: int, value: object, exact: int) -> int | None:
    """A seed; whole floats, which tables with empty cells have in place of integers, are seeds where they are exact."""
    given = value
    if piece.source.suffix in CELL_FORMATS and isinstance(value, str) and re.fullmatch(r"\s*([0-9]{1,19}(\.0*)?)?\s*", value):
        given = int(value.partition(".")[0]) if value.strip() else None
    if isinstance(value, Decimal):
        given = int(value) if value == value.to_integral_value() else value
    if isinstance(value, float):
        given = None if value != value else int(value) if value.is_integer() and abs(value) <= exact else value
    if given is None or (isinstance(given, int) and not isinstance(given, bool) and 0 <= given < 1 << SEED_BITS):
        return given
    raise UsageError(f"{piece.place(row)}: seed is {shown(value)}; allowed: an integer from 0 to 2**63 - 1, or null")
