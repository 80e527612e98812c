"""Files of committed shards that are not what was committed, met while they are read for something else than checking them."""

from collections.abc import Iterator
from contextlib import contextmanager

from hybridiff.corpus.corpus import REPAIR, Corpus
from hybridiff.corpus.counted import differs
from hybridiff.corpus.names import marker_counts
from hybridiff.secrets import one_line


class ShardDamaged(OSError):
    """A committed shard does not hold what its marker says; the message names the file and what to do."""


def damaged(corpus: Corpus, name: str, reason: object) -> ShardDamaged:
    """What is raised of a file inside the corpus; of an error as the reason, its message."""
    text = one_line(reason) if isinstance(reason, Exception) else str(reason)
    return ShardDamaged(f"{name} in {corpus.url} is damaged ({text}); {REPAIR}")


@contextmanager
def reading(corpus: Corpus, index: int, name: str) -> Iterator[None]:
    """Turns what readers raise of a damaged file into ``ShardDamaged``; errors of the storage are an OSError.

    Args:
        corpus: Where the file is.
        index: Of its shard.
        name: Of the file inside the corpus.

    Raises:
        ShardDamaged: If the file is damaged or missing.
        FileNotFoundError: If the whole output was removed during the run.
    """
    try:
        yield
    except (ShardDamaged, AssertionError):
        raise
    except Exception as error:
        corpus.check_there()
        if not _is_damaged(corpus, index, name):  # clients of storages raise types of their own; readers of damaged files any
            if isinstance(error, OSError):
                raise
            raise OSError(one_line(error)) from error
        raise damaged(corpus, name, error) from error


def _is_damaged(corpus: Corpus, index: int, name: str) -> bool:
    try:
        marker = corpus.read_marker(index)
        marker_counts(marker, index)
        return name in marker["files"] and bool(differs(corpus, name, marker["files"][name]))
    except (ValueError, FileNotFoundError):
        return True
