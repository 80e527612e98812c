"""Temporary output folders, local or remote."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from tempfile import TemporaryDirectory
from typing import Any

from hybridiff.corpus.corpus import Corpus
from hybridiff.storage.filesystem import is_local
from jobs.benchmark.config import CorpusConfig
from jobs.benchmark.ranks import Ranks


class OutputFolder:
    """A folder below one of ``corpus.urls``.

    Args:
        url: url of the folder.
        label: name in the report, without secrets.
    """

    def __init__(self, url: str, label: str) -> None:
        self.url, self.label = url, label
        self.corpus = Corpus(url)
        self.fs: Any = self.corpus.fs
        self.local = is_local(self.fs)

    def child(self, name: str, ranks: Ranks) -> str:
        """The url of a folder of this name; waits for all ranks."""
        ranks.barrier()
        return f"{self.url}/{name}"

    def remove_after_all(self, url: str, ranks: Ranks) -> None:
        """Removes a folder when all ranks are done with it."""
        ranks.barrier()
        if ranks.rank == 0:
            self.remove(url)

    def remove(self, url: str) -> None:
        """Removes a folder and its contents, if it exists."""
        root = Corpus(url).root
        self.fs.invalidate_cache()
        with suppress(FileNotFoundError):
            self.fs.rm(root, recursive=True)

    def make_parent(self, path: str) -> None:
        """Creates the directory of a file, on storage that has directories."""
        if self.local:
            self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)

    def sync(self, path: str) -> None:
        """Flushes a local file to the disk, as a commit does."""
        if self.local:
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


@contextmanager
def output_folders(config: CorpusConfig, ranks: Ranks) -> Iterator[tuple[list[OutputFolder], str]]:
    """A new folder at each of ``corpus.urls``, and a local one for everything else; all are removed at the end.

    Raises:
        UsageError: the file system of a url is unknown.
    """
    with TemporaryDirectory(prefix="hybridiff-benchmark-") as temporary:
        token = ranks.gather(f"hybridiff-benchmark-{secrets.token_hex(4)}")[0]
        shared = ranks.gather(temporary)[0]
        given = {url.rstrip("/"): Corpus(url, "corpus.urls").url for url in config.urls} or {shared: "a temporary folder"}
        folders = [OutputFolder(f"{url}/{token}", label) for url, label in given.items()]
        try:
            yield folders, temporary
        finally:
            if ranks.rank == 0:
                for folder in folders:
                    with suppress(Exception):  # the storage's own failure is the one to report
                        folder.remove(folder.url)
