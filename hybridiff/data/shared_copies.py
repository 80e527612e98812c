"""Where copies of large tables lie, and what was found out about them: one rank makes it, others wait for it."""

import json
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol

import fsspec
from fsspec.implementations.local import LocalFileSystem

from hybridiff.data.making import Made, make_ready
from hybridiff.data.record import make_record, read_record
from hybridiff.data.rows import Request
from hybridiff.data.tables import reported

BEAT_S = 5.0
PATIENCE_S = 60.0  # without a sign of life from the leader
OTHER_BEATS = 6  # without one from another job, which may be dead


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

    def read(self, name: str) -> bytes:
        """A small file; raises ``FileNotFoundError``."""

    def publish(self, name: str, data: bytes) -> None:
        """Writes a small file, whole or not at all."""

    def publishing(self, name: str) -> AbstractContextManager[Any]:
        """Opens a file that appears, whole, when the body ends, and not at all if it raises."""


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


class SharedCopies:
    """Copies and the record of what was made, in a store under a name that tells what they were made of.

    Args:
        store: Where.
        identity: Of what is read.
        beat_s: How often the leader shows that it is alive.
        patience_s: How long others wait for that.
    """

    def __init__(self, store: Store, identity: str, beat_s: float = BEAT_S, patience_s: float = PATIENCE_S) -> None:
        self.files = store.fs
        self._store, self._name = store, f"tables/{identity}"
        self._beat_s, self._patience_s = beat_s, patience_s
        self._rows = 0

    def path(self, index: int) -> str:
        """Of the copy of file ``index``."""
        return self._store.path(f"{self._name}-{index}.parquet")

    @contextmanager
    def writing(self, index: int) -> Iterator[Any]:
        """Opens the copy of file ``index``."""
        trouble = "the copy of a prompt table can't be written there"
        with reported(self._store.url, trouble), self._store.publishing(f"{self._name}-{index}.parquet") as sink:
            yield sink

    def progress(self, rows: int) -> None:
        """Takes down how far things are."""
        self._rows = rows

    def load(self, request: Request) -> Made | None:
        """What was made before, if anything."""
        if (record := self._read("json")) is None:
            return None
        made = read_record(json.loads(record), request, self)
        is_whole = all(part.path == part.source.path or self.files.exists(part.path) for part in made.parts)
        return made if is_whole else None

    def make(self, request: Request) -> Made:
        """Makes everything ready, or waits for another job that is doing so."""
        if self._sign() is not None and (made := self._watch(request, OTHER_BEATS * self._beat_s)) is not None:
            return made
        with self.alive():
            try:
                made = make_ready(request, self)
                self._publish("json", json.dumps(make_record(made), indent=1).encode())
            except BaseException:
                for index in range(len(request.sources)):
                    self._remove(self.path(index))
                raise
        return made

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Shows to those who wait that the leader is alive, whatever it is doing, until the body ends."""
        self._publish("making", self._new_sign())
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(self._beat_s):
                with suppress(Exception):  # the next beat may get through, and the making itself tells of a broken store
                    self._publish("making", self._new_sign())

        thread = threading.Thread(target=beat, name="beat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self._remove(self._store.path(f"{self._name}.making"))

    def wait(self, request: Request) -> Made | None:
        """What the leader makes; None once it shows no sign of life any more."""
        return self._watch(request, self._patience_s)

    def _watch(self, request: Request, patience_s: float) -> Made | None:
        sign, since = self._sign(), time.monotonic()
        while time.monotonic() - since < patience_s:
            if (made := self.load(request)) is not None:
                return made
            time.sleep(min(0.2, patience_s / 10))
            if (now := self._sign()) != sign:
                sign, since = now, time.monotonic()
        return self.load(request)

    def _remove(self, path: str) -> None:
        with suppress(Exception):  # it may not be there, and what led here is what is to be told
            self._store.fs.rm_file(path)

    def _publish(self, suffix: str, data: bytes) -> None:
        with reported(self._store.url, "what was found out about the prompt tables can't be written there"):
            self._store.publish(f"{self._name}.{suffix}", data)

    def _new_sign(self) -> bytes:
        return f"{self._rows} {secrets.token_hex(4)}".encode()

    def _sign(self) -> bytes | None:
        return self._read("making")

    def _read(self, suffix: str) -> bytes | None:
        with reported(self._store.url, "cannot be read"), suppress(FileNotFoundError, NotADirectoryError):
            return self._store.read(f"{self._name}.{suffix}")
        return None
