"""One run at a time on a corpus: a small object beside it that says who writes, renewed while the run lasts.

The object is ``lock/<generation>.json``, created only if absent. Whoever takes over from a holder that is gone creates the next
generation, so of several one wins; the highest generation holds. Independent runs may hold a part each,
``lock-<part>-of-<parts>/<generation>.json``, if all count the same number of parts. Runs with claims share a corpus and hold no
lock; while any is at work, nobody gets it.
"""

import json
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from hybridiff.config import UsageError
from hybridiff.sinks.claimed import at_work
from hybridiff.sinks.corpus import Corpus
from hybridiff.sinks.holder import STALE_S, Holder
from hybridiff.sinks.publish import publish_bytes

BEAT_S = 20.0
_NAME = re.compile(r"(\d+)\.json")
_FOLDER = re.compile(r"lock(?:-\d+-of-(\d+))?")


class RunLock:
    """Holds a corpus while it is entered.

    Args:
        corpus: To be written.
        job: Of a batch system or launcher, for whoever is refused.
        force: Whether to take over from a holder that may be alive.
        restart: How often the batch system has started the job again.
        part: Of the corpus and of how many, where independent jobs share it; each part has a lock of its own.
        taken: Called, on another thread, once another run has taken over.
        cluster: SLURM's name of where the job runs; None if it is not SLURM's.
        is_over: Whether a holder's job has ended, as the batch system says; asked only before a refusal.

    Attributes:
        lost: Whether another run has taken over.

    Raises:
        UsageError: on entering, if another run holds the corpus, or a part of another number of parts, or if others have claims
            on its shards; says who, since when, and what to do if it is gone.
    """

    def __init__(
        self,
        corpus: Corpus,
        job: str | None = None,
        force: bool = False,
        restart: int = 0,
        part: tuple[int, int] = (0, 1),
        taken: Callable[[], None] = lambda: None,
        cluster: str | None = None,
        is_over: Callable[[Holder], bool] = lambda _: False,
    ) -> None:
        self._corpus, self._force, self._taken, self._is_over = corpus, force, taken, is_over
        self._holder = Holder.here(job, restart, cluster)
        self._parts = part[1]
        self._folder = "lock" if part[1] == 1 else f"lock-{part[0]}-of-{part[1]}"
        self._generation = -1
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="run lock", daemon=True)
        self.lost = False

    def check(self) -> list[int]:
        """Refuses as entering does where another run holds the corpus, but holds nothing; returns the generations there are."""
        self._give_way_to_other_parts()
        generations = self._generations()
        if generations:
            self._refuse(_read(self._corpus, self._folder, generations[-1]))
        return generations

    def __enter__(self) -> "RunLock":
        generations = self.check()
        self._generation = generations[-1] + 1 if generations else 0
        try:
            self._write(exclusive=True)
        except FileExistsError as error:
            raise self._refusal(_read(self._corpus, self._folder, self._generation)) from error
        try:  # also of those who came at the same time: rather none than both
            self._give_way_to_other_parts()
            self._give_way_to_claims()
        except BaseException:
            self._remove(self._generation)
            raise
        for generation in generations:
            self._remove(generation)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        self._thread.join()
        self._remove(self._generation)

    def beat(self) -> None:
        """Gives a sign of life, unless another run has taken over.

        Raises:
            FileNotFoundError: If the output was removed during the run.
        """
        self._corpus.check_there()  # a sign of life would make its directory anew
        if max(self._generations(), default=self._generation) > self._generation:
            self.lost = True
            self._taken()
        elif not self.lost:
            self._write(exclusive=False)

    def _give_way_to_other_parts(self) -> None:
        """Refuses while somebody holds a part of another number of parts, whose shards may be those of this one."""
        for folder, parts in _folders(self._corpus).items():
            if parts != self._parts:
                self._refuse(_holder(self._corpus, folder))

    def _refuse(self, there: Holder | None) -> None:
        if there is None or self._force or there.gone() or there.succeeded_by(self._holder):
            return
        if not self._is_over(there):
            raise self._refusal(there)

    def _give_way_to_claims(self) -> None:
        owners = [] if self._force else at_work(self._corpus)
        if owners:
            raise UsageError(
                f"output.url {self._corpus.url} is being written by {', '.join(owners)}, with claims; allowed meanwhile: "
                "--data.assignment=claims. If they are gone, give --force_unlock, or wait for data.lease_s"
            )

    def _beat(self) -> None:
        while not self.lost and not self._ended.wait(BEAT_S):
            with suppress(Exception):  # storage that is away for a while must not end the run
                self.beat()

    def _refusal(self, there: Holder | None) -> UsageError:
        who = "another run" if there is None else str(there)
        allowed = "one run at a time, or several that all have --data.assignment=claims, or the same data.parts"
        return UsageError(
            f"output.url {self._corpus.url} is being written by {who}; allowed: {allowed}. "
            f"If that one is gone, give --force_unlock, or wait until it was silent for {STALE_S:.0f} s"
        )

    def _generations(self) -> list[int]:
        return _generations(self._corpus, self._folder)

    def _write(self, exclusive: bool) -> None:
        content = json.dumps({**vars(self._holder), "seen": time.time()}).encode()
        publish_bytes(self._corpus.fs, self._corpus.path(self._name(self._generation)), content, exclusive=exclusive, sweep=False)

    def _name(self, generation: int) -> str:
        return f"{self._folder}/{generation:06d}.json"

    def _remove(self, generation: int) -> None:
        with suppress(Exception):  # a lock that stays is found to be stale
            self._corpus.fs.rm_file(self._corpus.path(self._name(generation)))
            self._corpus.fs.invalidate_cache(self._corpus.path(self._folder))


def holders(corpus: Corpus) -> list[Holder]:
    """Who holds a corpus or parts of it, and is not gone as far as is known."""
    found = (_holder(corpus, folder) for folder in _folders(corpus))
    return [holder for holder in found if holder is not None and not holder.gone()]


def _folders(corpus: Corpus) -> dict[str, int]:
    """Where locks lie, and of how many parts each is for one."""
    return {match[0]: int(match[1] or 1) for match in map(_FOLDER.fullmatch, corpus.names("")) if match}


def _generations(corpus: Corpus, folder: str) -> list[int]:
    return sorted(int(match[1]) for match in map(_NAME.fullmatch, corpus.names(folder)) if match)


def _holder(corpus: Corpus, folder: str) -> Holder | None:
    generations = _generations(corpus, folder)
    return _read(corpus, folder, generations[-1]) if generations else None


def _read(corpus: Corpus, folder: str, generation: int) -> Holder | None:
    try:
        return Holder.read(corpus.read(f"{folder}/{generation:06d}.json"))
    except (FileNotFoundError, ValueError):  # released meanwhile, or written by another version
        return None
