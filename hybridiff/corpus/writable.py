"""Whether a corpus can be written and overwrites nothing, and what killed processes left where it can."""

import os
import re
import tempfile
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from fsspec.implementations.local import LocalFileSystem

from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.layout import AFTER_RUN_RECORD, LEASES, RUN_RECORD
from hybridiff.errors import StorageError, UsageError, access_error
from hybridiff.secrets import one_line
from hybridiff.storage.folder import modified
from hybridiff.storage.publish import make_directory

_PROBE = ".hybridiff-probe"  # one name for all: what a killed process left is gone with the next one's
LEFTOVER = re.compile(r"\.hybridiff-probe|\..+\.[0-9a-f]{16}\.tmp")  # of killed processes
_DEAD = timedelta(minutes=10)  # of small files that should have been renamed at once


def check_free(corpus: Corpus) -> None:
    """Makes sure, with one listing, that nothing of somebody else has a name that a corpus needs; other names don't matter.

    Raises:
        UsageError: there is such a name, and neither a run record nor a commit marker; or the place may not be listed.
        StorageError: the storage does not answer.
    """
    try:
        names = set(corpus.names(""))
        present = sorted(_taken(corpus, names)) if RUN_RECORD not in names else []
        # listings of some storage lag behind
        foreign = bool(present) and corpus.modified(RUN_RECORD) is None and not corpus.committed()
    except Exception as error:  # storage clients raise types of their own that are no OSError
        raise access_error(f"{corpus.option} is {corpus.url}: it can't be listed ({one_line(error)})", error) from error
    if foreign:
        raise UsageError(
            f"{corpus.option} {corpus.url} holds {', '.join(present)} and no corpus (neither {RUN_RECORD} nor a marker in "
            "commits/); allowed: a new directory, or one without these names, which a corpus would overwrite"
        )


def _taken(corpus: Corpus, names: set[str]) -> frozenset[str]:
    """The names that a corpus needs and that are there; on some local file systems in other letter cases."""
    if isinstance(corpus.fs, LocalFileSystem):
        return frozenset(name for name in AFTER_RUN_RECORD if os.path.lexists(corpus.path(name)))
    return AFTER_RUN_RECORD & names


def check_writable(corpus: Corpus) -> None:
    """Writes and removes a small file; on local disks one without a name, of which a kill leaves nothing.

    Raises:
        UsageError: the place may not be written, or is not there.
        StorageError: the storage does not answer, or is full.
    """
    _check_links(corpus)
    try:
        if (now := _probe(corpus)) is not None:
            with suppress(Exception):  # what others left does no harm
                _sweep(corpus, now - _DEAD)
    except Exception as error:  # storage clients raise types of their own that are no OSError
        raise access_error(f"{corpus.option} is {corpus.url}: it is not writable ({one_line(error)})", error) from error


def check_could_be_written(corpus: Corpus) -> None:
    """As ``check_writable``, but leaves directories as they are, and asks nothing of storage other than local disks.

    Raises:
        UsageError: the place may not be written.
        StorageError: the disk is full.
    """
    _check_links(corpus)
    if not isinstance(corpus.fs, LocalFileSystem):
        return
    nearest = os.path.abspath(corpus.root)
    while not os.path.lexists(nearest):
        nearest = os.path.dirname(nearest)
    try:
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(b"probe")
            file.flush()
    except OSError as error:
        raise access_error(f"{corpus.option} is {corpus.url}: it is not writable ({one_line(error)})", error) from error


def _check_links(corpus: Corpus) -> None:
    """Refuses directories of the corpus that are links out of it."""
    try:
        for name in (*AFTER_RUN_RECORD, LEASES, "tables"):
            corpus.target(f"{name}/any")
    except StorageError as error:  # in mid-run; before it, links out of a directory are the user's
        raise UsageError(f"{corpus.option} is {corpus.url}: it is not writable ({one_line(error)})") from error


def _probe(corpus: Corpus) -> datetime | None:
    """Writes something, and returns when by the storage's clock; None if another process has removed it in this moment."""
    if isinstance(corpus.fs, LocalFileSystem):
        make_directory(corpus.fs, corpus.root)
        with tempfile.TemporaryFile(dir=corpus.root) as file:
            file.write(b"probe")
            file.flush()
            return datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, UTC)
    corpus.publish(_PROBE, b"probe")
    written = corpus.modified(_PROBE)
    with suppress(FileNotFoundError):  # another process removes it too
        corpus.remove(_PROBE)
    return written


def _sweep(corpus: Corpus, before: datetime) -> None:
    """Removes small files that killed processes left: those of names that several processes may publish at once.

    Such a file is written and renamed in a moment; one from before ``before``, by the storage's clock, is no running process's.
    """
    folders = ["", LEASES] if LEASES in corpus.names("") else [""]
    for folder in folders:
        path = corpus.path(folder) if folder else corpus.root
        corpus.target(f"{folder}/any")  # nothing is removed through a link
        for found in corpus.fs.ls(path, detail=True):
            name = found["name"].rpartition("/")[2]
            if LEFTOVER.fullmatch(name) and found["type"] == "file" and modified(found) < before:
                with suppress(FileNotFoundError):  # by another process of the same job
                    corpus.fs.rm_file(found["name"])
