"""One run at a time on a corpus: a small object beside it that says who writes, renewed while the run lasts.

The object is created only if absent. Whoever takes over from a holder that is gone creates the next generation, so of several one
wins. Independent runs may hold a part each, if all count the same number of parts. Runs with claims share a corpus and hold no
lock; while any is at work, nobody gets it. A run with a lock writes it and then looks for claims, one with claims writes a claim
and then looks for a lock: of two that come at the same time, one at least sees the other.
"""

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from hybridiff.corpus.claimed import at_work
from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.holder import NOBODY, STALE_S, Holder
from hybridiff.corpus.lock_files import folder_of, folders, generations_in, latest_holder, lock_name, read_holder
from hybridiff.errors import UsageError
from hybridiff.storage.publish import publish_bytes

BEAT_S = 20.0


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
        self._folder = folder_of(part)
        self._generation = -1
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="run lock", daemon=True)
        self.lost = False

    def check(self, alone: bool = False) -> list[int]:
        """Refuses where another run holds the corpus, but holds nothing; returns the generations there are.

        Args:
            alone: Whether to refuse where runs with claims are at work, too.
        """
        self._give_way_to_other_parts()
        generations = self._generations()
        if generations:
            self._refuse(read_holder(self._corpus, self._folder, generations[-1]))
        if alone:
            self._give_way_to_claims()
        return generations

    def share(self) -> None:
        """Lets a run with claims have the corpus, and holds nothing: takes it away from holders that are gone, by force from any.

        Raises:
            UsageError: If there is another holder.
        """
        for folder in folders(self._corpus):
            generations = generations_in(self._corpus, folder)
            there = read_holder(self._corpus, folder, generations[-1]) if generations else None
            self._refuse(there)
            if there not in (None, NOBODY):
                self._take_away(folder, generations[-1] + 1)

    def __enter__(self) -> "RunLock":
        generations = self.check(alone=True)  # before there is a lock, which those with claims would give way to
        self._generation = generations[-1] + 1 if generations else 0
        try:
            self._write(exclusive=True)
        except FileExistsError as error:
            raise self._refusal(read_holder(self._corpus, self._folder, self._generation)) from error
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
        for folder, parts in folders(self._corpus).items():
            if parts != self._parts:
                self._refuse(latest_holder(self._corpus, folder))

    def _take_away(self, folder: str, generation: int) -> None:
        try:
            self._corpus.publish(lock_name(folder, generation), json.dumps(vars(NOBODY)).encode(), exclusive=True)
        except FileExistsError as error:
            raise self._refusal(read_holder(self._corpus, folder, generation)) from error

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
        return generations_in(self._corpus, self._folder)

    def _write(self, exclusive: bool) -> None:
        content = json.dumps({**vars(self._holder), "seen": time.time()}).encode()
        publish_bytes(self._corpus.fs, self._path(self._generation), content, exclusive=exclusive, sweep=False)

    def _path(self, generation: int) -> str:
        return self._corpus.path(lock_name(self._folder, generation))

    def _remove(self, generation: int) -> None:
        with suppress(Exception):  # a lock that stays is found to be stale
            self._corpus.fs.rm_file(self._path(generation))
            self._corpus.fs.invalidate_cache(self._corpus.path(self._folder))
