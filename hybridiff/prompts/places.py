"""Where copies of large tables lie."""

import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any, Protocol

import fsspec
from fsspec.implementations.local import LocalFileSystem


class Store(Protocol):
    """A directory at any url.

    Attributes:
        url: For messages, without secrets.
        fs: Its file system.
    """

    url: str
    fs: fsspec.AbstractFileSystem

    def path(self, name: str) -> str:
        """On the file system."""

    def names(self, directory: str) -> list[str]:
        """Of the files in a directory of it."""

    def read(self, name: str) -> bytes:
        """A small file; raises ``FileNotFoundError``."""

    def publish(self, name: str, data: bytes, exclusive: bool = False) -> None:
        """Writes a small file, whole or not at all; ``exclusive`` raises ``FileExistsError`` if it is there."""

    def publishing(self, name: str, sweep: bool) -> AbstractContextManager[Any]:
        """Opens a file that appears, whole, when the body ends, and not at all if it raises.

        With ``sweep``, what others have begun under this name and not finished is removed first.
        """


class TemporaryCopies:
    """Copies in a temporary directory that goes with this object."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="hybridiff-")
        self.files = LocalFileSystem()

    def path(self, index: int) -> str:
        """Of the copy of file ``index``."""
        return str(Path(self._directory.name) / f"{index}.parquet")

    def writing(self, index: int) -> AbstractContextManager[IO[bytes]]:
        """Opens the copy of file ``index``."""
        return open(self.path(index), "wb")

    def progress(self, rows: int) -> None:
        """Nobody waits."""
