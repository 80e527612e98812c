"""Names of columns: each once in a file, and not too many."""

from collections.abc import Iterable, Sequence

from hybridiff.errors import UsageError
from hybridiff.prompts.keys import shown

MOST_COLUMNS = 1000  # every row of the corpus has all of them


def shown_names(names: Iterable[str]) -> str:
    """Names of columns as messages show them: not too many, and none too long."""
    known = list(names)
    return ", ".join([*map(shown, known[:10]), *(["..."] if len(known) > 10 else [])])


def check_names(file: str, names: Sequence[str]) -> None:
    """Raises ``UsageError`` where a file has two columns of one name, or too many columns."""
    if len(names) > MOST_COLUMNS:
        raise UsageError(f"{file}: has more than {MOST_COLUMNS} columns; allowed: {MOST_COLUMNS} in all files together")
    if len(set(names)) < len(names):
        raise UsageError(f"{file}: column names are [{shown_names(names)}]; allowed: each once")


def check_columns_together(places: dict[str, str]) -> None:
    """Raises ``UsageError`` where files have too many user's columns together; ``places`` has a file for each name, in order."""
    if len(places) > MOST_COLUMNS:
        last = list(places.values())[MOST_COLUMNS]
        raise UsageError(f"{last}: brings the files to more than {MOST_COLUMNS} columns; allowed: {MOST_COLUMNS} in all together")
