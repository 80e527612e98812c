"""A directory of splits: a corpus for each, as ``hybridiff select --split`` writes them, and the file that names them."""

import json
from collections.abc import Sequence

from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.layout import RUN_RECORD
from hybridiff.errors import UsageError
from hybridiff.secrets import one_line
from hybridiff.storage.folder import Folder, parse_json

SPLITS = "splits.json"


def write_splits(folder: Folder, names: Sequence[str]) -> None:
    """Names the splits in a directory."""
    folder.publish(SPLITS, (json.dumps({"format": 1, "splits": list(names)}, indent=1) + "\n").encode())


def read_splits(folder: Folder) -> list[str]:
    """Names of the splits in a directory; none if it is no directory of splits.

    Raises:
        UsageError: its list of splits is damaged.
    """
    try:
        document = parse_json(folder.read(SPLITS))
        splits = document["splits"]
        if not (isinstance(splits, list) and splits and all(isinstance(name, str) and name.isidentifier() for name in splits)):
            raise ValueError("it names no splits")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{SPLITS} in {folder.url} is damaged ({one_line(error)})") from error
    return list(splits)


def open_corpora(url: str, option: str) -> dict[str, Corpus]:
    """The corpora of a directory by the names of their splits; of one without splits the corpus itself, under "".

    Args:
        url: local path or fsspec url, without credentials.
        option: the option that names it, for messages.

    Raises:
        UsageError: its list of splits is damaged.
    """
    corpus = Corpus(url, option)
    names = read_splits(corpus) if corpus.modified(RUN_RECORD) is None else []
    return {name: Corpus(f"{url.rstrip('/')}/{name}", option) for name in names} or {"": corpus}


def no_corpus(corpus: Corpus) -> UsageError:
    """The error about a directory without a run record, where a corpus is needed; it names the splits that are there."""
    if names := read_splits(corpus):
        root = corpus.url.rstrip("/")
        return UsageError(f"{corpus.url} holds splits; allowed: one of them, {' or '.join(f'{root}/{name}' for name in names)}")
    allowed = "the output of hybridiff generate or select"
    return UsageError(f"{corpus.url} holds no corpus: {RUN_RECORD} is missing; allowed: {allowed}")
