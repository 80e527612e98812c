"""Folders to write to, local or remote, that are removed again."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from tempfile import TemporaryDirectory
from typing import Any

from hybridiff.corpus.corpus import Corpus
from hybridiff.errors import UsageError
from hybridiff.storage.filesystem import is_local
from jobs.benchmark.sinks.config import SinksConfig
from jobs.benchmark.world import World


class Place:
    """A directory below one of ``sinks.urls``.

    Args:
        url: Of the folder that everything goes into.
        shown: What the report calls it: without secrets.
    """

    def __init__(self, url: str, shown: str) -> None:
        self.url, self.shown = url, shown
        self.corpus = Corpus(url)
        self.fs: Any = self.corpus.fs
        self.local = is_local(self.fs)

    def folder(self, name: str, world: World) -> str:
        """The url of a folder of this name, once all ranks are here."""
        world.barrier()
        return f"{self.url}/{name}"

    def remove(self, url: str, world: World) -> None:
        """Removes a folder, once all ranks have done with it."""
        world.barrier()
        if world.rank == 0:
            self.drop(url)

    def drop(self, url: str) -> None:
        """Removes a folder and what is in it, if it is there."""
        root = Corpus(url).root
        self.fs.invalidate_cache()
        with suppress(FileNotFoundError):
            self.fs.rm(root, recursive=True)

    def make_parent(self, path: str) -> None:
        """Makes the directory of a file, where there are directories."""
        if self.local:
            self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)

    def sync(self, path: str) -> None:
        """Has a file on the disk, where there is one: a commit waits for that too."""
        if self.local:
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


@contextmanager
def places(config: SinksConfig, world: World) -> Iterator[tuple[list[Place], str]]:
    """A new folder at each of ``sinks.urls``, and one on this machine for what is none of the output's; all removed at the end.

    Raises:
        UsageError: a url is of no known file system.
    """
    with TemporaryDirectory(prefix="hybridiff-sinks-") as temporary:
        token = world.gather(f"hybridiff-sinks-{secrets.token_hex(4)}")[0]
        folder = world.gather(temporary)[0]
        given = {url.rstrip("/"): _shown(url) for url in config.urls} or {folder: "a temporary folder"}
        found = [Place(f"{url}/{token}", shown) for url, shown in given.items()]
        try:
            yield found, temporary
        finally:
            if world.rank == 0:
                for place in found:
                    with suppress(Exception):  # the storage's own failure is the one to report
                        place.drop(place.url)


def _shown(url: str) -> str:
    try:
        return Corpus(url).url
    except UsageError as error:
        raise UsageError(str(error).replace("output.url", "sinks.urls", 1)) from error
