"""Keys name images: unique in the corpus and safe as file names on Linux and in object storage."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from hybridiff.errors import UsageError
from hybridiff.prompts.column_types import is_text
from hybridiff.prompts.names import shown
from hybridiff.prompts.text_formats import Piece

KEY_BYTES = 200
_UNSAFE = re.compile(r"[/\\.\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_UNSAFE_RE2 = r"[/\\.\x00-\x1f\x7f-\x{9f}]"
_SLUG_CHARACTERS = 80


def file_slugs(stems: Sequence[str]) -> list[str]:
    """A name for each file, made of its stem; files that would share one get their position appended."""
    slugs = [re.sub(r"[^a-z0-9_]+", "-", stem.lower())[:_SLUG_CHARACTERS].strip("-") or "prompts" for stem in stems]
    counts = Counter(slugs)
    return [slug if counts[slug] == 1 else f"{slug}-{position}" for position, slug in enumerate(slugs)]


def make_keys(slug: str, rows: int, first: int = 0) -> list[str]:
    """Keys of a file's rows that bring none, from row ``first`` on."""
    return [f"{slug}-{row:08d}" for row in range(first, first + rows)]


def image_suffix(index: int, images: int) -> str:
    """What is appended to a row's key for image ``index`` of ``images``; of fixed width, so that unique keys stay unique."""
    return "" if images == 1 else f"-{index:0{len(str(images - 1))}d}"


def key_limit(images: int) -> int:
    """Bytes that a row's key may have, so that there is room for its image suffix."""
    return KEY_BYTES - len(image_suffix(0, images))


def given_keys(piece: Piece, column: str, images: int) -> pa.Array:
    """Given keys as text.

    Raises:
        UsageError: one is not allowed; names the file and row.
    """
    values, limit = piece.columns.get(column, [None] * len(piece.numbers)), key_limit(images)
    if isinstance(values, pa.ChunkedArray) and (is_text(values.type) or pa.types.is_integer(values.type)):
        faults = [row for row, error in piece.errors.items() if error.startswith(f"{shown(column)} can't")]
        if faults:
            raise UsageError(f"{piece.place(faults[0])}: {piece.errors[faults[0]]}")
        keys = values.cast(pa.string()).combine_chunks()
        if _are_safe(keys, limit):
            return keys
    texts = []
    for row, value in enumerate(values.to_pylist() if isinstance(values, pa.ChunkedArray) else values):
        if not isinstance(value, (str, int)) or isinstance(value, bool):
            raise UsageError(f"{piece.place(row)}: {column} is {shown(value)}; allowed: text or an integer")
        if not is_safe_key(str(value), limit):
            raise UsageError(
                f"{piece.place(row)}: key is {shown(str(value))}; allowed: 1 to {limit} bytes in UTF-8 without / \\ . and "
                "control characters (WebDataset ends a key at its first dot)"
            )
        texts.append(str(value))
    return pa.array(texts, pa.string())


def is_safe_key(key: str, limit: int) -> bool:
    """Whether a key and its image suffix are safe as a file name; ``limit`` is its length in bytes.

    That is on Linux and in object storage. Windows and macOS may refuse ``CON`` and ``*``, and take ``A`` and ``a`` for one name.
    """
    return not _UNSAFE.search(key) and 1 <= len(key.encode()) <= limit


def refuse_duplicate(keys: Iterable[str], place: Callable[[int], str]) -> None:
    """Raises ``UsageError`` that names the first key found twice and both its places; ``place`` names the i-th key's."""
    first: dict[str, int] = {}
    for index, key in enumerate(keys):
        if key in first:
            raise UsageError(f"{place(index)}: key {shown(key)} is also at {place(first[key])}; allowed: unique keys")
        first[key] = index


def _are_safe(keys: pa.StringArray, limit: int) -> bool:
    if keys.null_count or len(keys) == 0:
        return len(keys) == 0
    bounds = pc.min_max(pc.binary_length(keys)).as_py()
    return bounds["min"] >= 1 and bounds["max"] <= limit and not pc.any(pc.match_substring_regex(keys, _UNSAFE_RE2)).as_py()
