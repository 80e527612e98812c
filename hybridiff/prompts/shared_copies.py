"""Copies of large tables, and what was found out about them, that jobs share: one makes them, the others wait for it."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from hybridiff.prompts.making import Made, make_ready
from hybridiff.prompts.places import Store
from hybridiff.prompts.record import make_record, read_record
from hybridiff.prompts.rows import Request
from hybridiff.prompts.signs import MakerSigns, Sign
from hybridiff.prompts.tables import reported

BEAT_S = 5.0
PATIENCE_S = 60.0  # without a sign of life from the leader
OTHER_BEATS = 6  # without one from another job, which may be dead


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
        self._signs = MakerSigns(store, self._name, beat_s)
        self._others_s, self._patience_s = OTHER_BEATS * beat_s, patience_s
        self._made_here = False

    def path(self, index: int) -> str:
        """Of the copy of file ``index``."""
        return self._store.path(f"{self._name}-{index}.parquet")

    @contextmanager
    def writing(self, index: int) -> Iterator[Any]:
        """Opens the copy of file ``index``."""
        name, sweep = f"{self._name}-{index}.parquet", self._signs.took_over
        trouble = "the copy of a prompt table can't be written there"
        with reported(self._store.url, trouble), self._store.publishing(name, sweep) as sink:
            yield sink

    def progress(self, rows: int) -> None:
        """Takes down how far things are."""
        self._signs.rows = rows

    def load(self, request: Request) -> Made | None:
        """What was made before, if anything."""
        with reported(self._store.url, "cannot be read"):
            try:
                record = self._store.read(f"{self._name}.json")
            except (FileNotFoundError, NotADirectoryError):
                return None
        made = read_record(json.loads(record), request, self)
        is_whole = all(part.path == part.source.path or self.files.exists(part.path) for part in made.parts)
        return made if is_whole else None

    def make(self, request: Request) -> Made:
        """Makes everything ready, or waits for another job that is doing so."""
        while True:
            made, dead = self._watch(request, self._others_s, expects=False)
            if made is None and self._signs.take(dead):
                made = self._make(request)
            if made is not None:
                return made

    def wait(self, request: Request) -> Made | None:
        """What the leader makes; None once it shows no sign of life any more."""
        return self._watch(request, self._patience_s, expects=True)[0]

    def discard(self, request: Request) -> None:
        """Removes what ``make`` has made, not what it found or another job has made."""
        if self._made_here:
            with suppress(Exception):  # what stays is of use to a run with these tables
                self.files.rm_file(self._store.path(f"{self._name}.json"))
            self._remove(request)

    def _make(self, request: Request) -> Made | None:
        """Makes everything ready as the one who does; None if another has taken over meanwhile."""
        with self._signs.alive():
            if (made := self.load(request)) is not None:  # by one that ended in this moment
                return made
            try:
                made = make_ready(request, self)
                if not self._signs.are_mine():
                    return None
                with reported(self._store.url, "what was found out about the prompt tables can't be written there"):
                    self._store.publish(f"{self._name}.json", json.dumps(make_record(made), indent=1).encode())
                self._made_here = True
            except BaseException as error:
                if isinstance(error, Exception) and self._is_lost():  # what was begun here may have been swept away
                    return None
                self._remove(request)
                raise
        return made

    def _watch(self, request: Request, patience_s: float, expects: bool) -> tuple[Made | None, Sign | None]:
        """What another makes, or the last sign of one that is silent; a first sign is only waited for if one is expected."""
        sign, since = self._signs.latest(), time.monotonic()
        while (expects or sign is not None) and time.monotonic() - since < patience_s:
            if (made := self.load(request)) is not None:
                return made, sign
            time.sleep(min(0.2, patience_s / 10))
            if (now := self._signs.latest()) != sign:
                sign, since = now, time.monotonic()
        return self.load(request), sign

    def _is_lost(self) -> bool:
        with suppress(Exception):  # of a store that is away nothing can be known, nor removed
            return not self._signs.are_mine()
        return False

    def _remove(self, request: Request) -> None:
        for index in range(len(request.sources)):
            with suppress(Exception):  # it may not be there, and what led here is what is to be told
                self.files.rm_file(self.path(index))
