"""Signs of life of whoever makes copies, so that of several jobs one makes them, and the others see whether it lives.

A sign is ``<name>.<generation>.making``, created only if absent; its maker alone writes it again. Whoever takes over from a
maker that is dead creates the next generation, so of several one wins; the highest generation counts.
"""

import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from hybridiff.prompts.places import Store
from hybridiff.prompts.tables import reported


@dataclass(frozen=True)
class Sign:
    """A sign of life, which differs from the one before it."""

    generation: int
    content: bytes


class MakerSigns:
    """The signs of those who make one thing, and one's own.

    Args:
        store: Where they lie.
        name: Of what is made.
        beat_s: How often a maker shows that it is alive.

    Attributes:
        rows: How far this maker is, for whoever looks.
        took_over: Whether it took over from one that had died.
    """

    def __init__(self, store: Store, name: str, beat_s: float) -> None:
        self._store, self._name, self._beat_s = store, name, beat_s
        self._folder, _, last = name.rpartition("/")
        self._pattern = re.compile(rf"{re.escape(last)}\.(\d+)\.making")
        self._me = secrets.token_hex(8)
        self._generation = -1
        self.rows = 0
        self.took_over = False

    def latest(self) -> Sign | None:
        """The sign that counts; None if nobody makes anything."""
        with reported(self._store.url, "cannot be read"), suppress(FileNotFoundError, NotADirectoryError):  # gone meanwhile
            generation = max(self._generations(), default=None)
            return None if generation is None else Sign(generation, self._store.read(self._file(generation)))
        return None

    def take(self, dead: Sign | None) -> bool:
        """Becomes the maker, after one that died if there was one; returns whether nobody else was first."""
        self._generation = 0 if dead is None else dead.generation + 1
        self.took_over = dead is not None
        trouble = "what was found out about the prompt tables can't be written there"
        with reported(self._store.url, trouble):
            try:
                self._store.publish(self._file(self._generation), self._sign(), exclusive=True)
            except FileExistsError:
                return False
        return self.are_mine()  # storage may let several create it in the same moment (Swift), and keep the last

    def are_mine(self) -> bool:
        """Whether this is still the maker: another may have taken over from one that was silent for long."""
        sign = self.latest()
        return sign is not None and sign.generation == self._generation and sign.content.startswith(self._me.encode())

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Shows to those who wait that the maker is alive, whatever it is doing, until the body ends."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(self._beat_s):
                with suppress(Exception):  # the next beat may get through, and the making itself tells of a broken store
                    if self.are_mine():
                        self._store.publish(self._file(self._generation), self._sign())

        thread = threading.Thread(target=beat, name="beat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self._remove()

    def _remove(self) -> None:
        """Removes one's own sign and, before it, those of the dead."""
        with suppress(Exception):  # signs that stay are found to be of the dead
            for generation in self._generations():
                if generation < self._generation or (generation == self._generation and self._is_mine(generation)):
                    self._store.fs.rm_file(self._store.path(self._file(generation)))

    def _is_mine(self, generation: int) -> bool:
        return self._store.read(self._file(generation)).startswith(self._me.encode())

    def _generations(self) -> list[int]:
        return sorted(int(match[1]) for match in map(self._pattern.fullmatch, self._store.names(self._folder)) if match)

    def _file(self, generation: int) -> str:
        return f"{self._name}.{generation}.making"

    def _sign(self) -> bytes:
        return f"{self._me} {self.rows} {secrets.token_hex(4)}".encode()
