"""Locks as small objects beside the corpus: who holds it, or a part of it.

A lock is ``lock/<generation>.json``, or ``lock-<part>-of-<parts>/<generation>.json``; the highest generation counts. One that
nobody holds says that the lock below was taken away for runs that share the corpus.
"""

import re

from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.holder import Holder, UnknownHolder

_NAME = re.compile(r"(\d+)\.json")
_FOLDER = re.compile(r"lock(?:-\d+-of-(\d+))?")


def holders(corpus: Corpus) -> list[Holder]:
    """Who holds a corpus or parts of it, and is not gone as far as is known; one listing where nobody ever did."""
    found = (latest_holder(corpus, folder) for folder in folders(corpus))
    return [holder for holder in found if holder is not None and not holder.gone()]


def folders(corpus: Corpus) -> dict[str, int]:
    """Where locks lie, and of how many parts each is for one."""
    return {match[0]: int(match[1] or 1) for match in map(_FOLDER.fullmatch, corpus.names("")) if match}


def folder_of(part: tuple[int, int]) -> str:
    """Where the locks of a part lie, given which of how many."""
    return "lock" if part[1] == 1 else f"lock-{part[0]}-of-{part[1]}"


def lock_name(folder: str, generation: int) -> str:
    """Name of a lock inside the corpus."""
    return f"{folder}/{generation:06d}.json"


def generations_in(corpus: Corpus, folder: str) -> list[int]:
    """Of the locks in a folder, in order."""
    return sorted(int(match[1]) for match in map(_NAME.fullmatch, corpus.names(folder)) if match)


def latest_holder(corpus: Corpus, folder: str) -> Holder | None:
    """Who holds what a folder is for; None if nobody does."""
    generations = generations_in(corpus, folder)
    return read_holder(corpus, folder, generations[-1]) if generations else None


def read_holder(corpus: Corpus, folder: str, generation: int) -> Holder | None:
    """The holder that a lock names; None if it was released meanwhile."""
    name = lock_name(folder, generation)
    try:
        return Holder.read(corpus.read(name))
    except FileNotFoundError:
        return None
    except ValueError:
        written = corpus.modified(name)
        return None if written is None else UnknownHolder(written)
