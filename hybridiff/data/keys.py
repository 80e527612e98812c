"""Keys name images: unique in the corpus and safe as file names."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from hybridiff.config import UsageError

KEY_BYTES = 200
_UNSAFE = re.compile(r"[/\\.\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SLUG_CHARACTERS = 80


def shown(value: object) -> str:
    """A value as messages show it: its repr on one line, shortened."""
    text = repr(value)
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


def check_key(key: str, images: int, place: str) -> None:
    """Raises ``UsageError`` unless ``key`` and its image suffix are safe as a file name everywhere."""
    limit = KEY_BYTES - len(image_suffix(0, images))
    if _UNSAFE.search(key) or not 1 <= len(key.encode()) <= limit:
        raise UsageError(
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
