"""Keys name images: unique in the corpus and safe as file names on Linux and in object storage."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from hybridiff.errors import UsageError
from hybridiff.secrets import redact

KEY_BYTES = 200
_UNSAFE = re.compile(r"[/\\.\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SLUG_CHARACTERS = 80


def shown(value: object) -> str:
    """A value as messages show it: its repr on one line, without secrets, shortened."""
    text = str(redact(repr(value)))
    return text if len(text) <= 60 else f"{text[:57]}..."


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


def is_safe_key(key: str, limit: int) -> bool:
    """Whether a key and its image suffix are safe as a file name; ``limit`` is its length in bytes.

    That is on Linux and in object storage. Windows and macOS may refuse ``CON`` and ``*``, and take ``A`` and ``a`` for one name.
    """
    return not _UNSAFE.search(key) and 1 <= len(key.encode()) <= limit


def unsafe_key(key: str, limit: int, place: str) -> UsageError:
    """What is raised for a key that is not safe."""
    return UsageError(
        f"{place}: key is {shown(key)}; allowed: 1 to {limit} bytes in UTF-8 without / \\ . and control characters "
        "(WebDataset ends a key at its first dot)"
    )


def refuse_duplicate(keys: Iterable[str], place: Callable[[int], str]) -> None:
    """Raises ``UsageError`` that names the first key found twice and both its places; ``place`` names the i-th key's."""
    first: dict[str, int] = {}
    for index, key in enumerate(keys):
        if key in first:
            raise UsageError(f"{place(index)}: key {shown(key)} is also at {place(first[key])}; allowed: unique keys")
        first[key] = index
