"""Who makes which shard, without a server: leases on shards, as small objects beside the corpus.

A claim is ``claims/<shard>.<generation>.json``, created only if absent, so of several takers one wins. Its owner alone writes it
again, to renew it. Whoever finds it expired takes the next generation, by which the older one is lost. So nothing is needed of
the storage but creation of what is absent. Clocks of machines should agree within a third of a lease: one that does not costs
work done twice, never a shard committed twice, as commit markers are created only if absent too.

A run without claims has the corpus for itself: owners look for its lock after a claim next to which they hold no other, and at
each renewal, and give way.
"""

import math
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from zlib import crc32

from hybridiff.corpus.claim_files import ClaimFiles
from hybridiff.corpus.claimed import latest_claims
from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.lock_files import holders

RENEWALS = 3  # per lease
_LOOKS = 12  # per lease, at the claims of others


class ShardTaken(RuntimeError):
    """The shard is another owner's by now, or committed: what was made of it must not be published."""


class DrawStopped(RuntimeError):
    """Asked not to draw any more, while there was something left."""


@dataclass
class _Lease:
    generation: int
    expires: float
    lost: bool = False


class Claims:
    """One owner's view of the claims on a corpus. Threads may share it.

    Args:
        corpus: Whose shards are claimed.
        shards: How many there are.
        lease_s: Seconds after which a claim that was not renewed is free again.
        owner: Names this owner in its claims; by default made of host, process and chance.
        clock: Seconds since some moment that all owners share.
        sleep: Waits so many seconds, or less.
        taken: Called once a run without claims has the corpus, perhaps on another thread.

    Attributes:
        lost: Whether such a run has it.

    Raises:
        UsageError: If the corpus lies where nothing can be created only if absent.
    """

    def __init__(
        self,
        corpus: Corpus,
        shards: int,
        lease_s: float,
        owner: str | None = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        taken: Callable[[], None] = lambda: None,
    ) -> None:
        self.owner = owner or f"{platform.node()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._files = ClaimFiles(corpus, self.owner)
        self._corpus, self._open, self._lease_s = corpus, set(range(shards)), lease_s
        self._clock, self._sleep, self._taken = clock, sleep, taken
        self.lost = False
        self._held: dict[int, _Lease] = {}
        self._latest: dict[int, int] = {}  # generations of the claims that there were, when last listed
        self._listed = -math.inf
        self._lock = threading.RLock()

    @property
    def held(self) -> frozenset[int]:
        """The shards claimed and neither lost nor let go."""
        with self._lock:
            return frozenset(index for index, lease in self._held.items() if not lease.lost)

    def draw(self, stop: Callable[[], bool] = lambda: False) -> int | None:
        """Claims a shard; None if all are committed or in hands that work.

        Where every shard left is claimed, it watches their claims until each was renewed (it is left to its owner) or expired
        (it is taken), for little more than a lease at most.

        Args:
            stop: Asked again and again, where there is something left, whether it is not to be claimed.

        Raises:
            DrawStopped: If ``stop`` said so, or a run without claims has the corpus.
            FileNotFoundError: If the output was removed during the run.
        """
        index = self._draw(stop)
        if index is not None and self.held == {index} and self._is_lost():  # a run without claims may have seen none
            self.release(index)
            self._taken()
            raise DrawStopped
        return index

    def _draw(self, stop: Callable[[], bool]) -> int | None:
        self._corpus.check_there()  # a claim would make its directory anew
        if self._clock() < self._listed + self._lease_s / RENEWALS and not stop():
            index = self._take_free()  # who came first since the listing is found out by the claim itself
            if index is not None:
                return index
        return self._look_and_take(stop)

    def _look_and_take(self, stop: Callable[[], bool]) -> int | None:
        first: dict[int, float] = {}  # when the claims of others would expire, as first seen
        for _ in range(_LOOKS + 2):
            self._corpus.check_there()
            self._list()
            left = self._left()
            if left and stop():
                raise DrawStopped
            all_claimed = self._latest.keys() >= set(left)
            index = self._take_free()
            if index is not None:
                return index
            others = self._files.expiries({index: self._latest[index] for index in left if index in self._latest})
            for index, expires in others.items():
                if expires <= self._clock() and self._take(index, self._latest[index] + 1):
                    return index
            renewed = [expires > first.setdefault(index, expires) for index, expires in others.items()]
            if all(renewed) and all_claimed:
                return None
            self._sleep(self._lease_s / _LOOKS)
        return None

    def _list(self) -> None:
        """Two listings, which a draw does without as long as there is a shard that nobody has claimed."""
        self._latest = latest_claims(self._corpus)  # before the markers: a claim that is gone by now may have left one
        self._open -= self._corpus.committed()
        self._listed = self._clock()

    def _take_free(self) -> int | None:
        """Claims a shard that had no claim when last listed; what others have claimed or committed since is noted."""
        for index in self._left():
            if index not in self._latest:
                if self._take(index, 0):
                    return index
                self._latest[index] = 0
        return None

    def renew(self) -> None:
        """Renews the claims that are held; one that another has taken over is lost. Then looks for runs without claims.

        What fails of one claim is raised after all.
        """
        failure: Exception | None = None
        for index in sorted(self.held):
            with self._lock:
                lease = self._held.get(index)
                try:
                    if lease is not None and not lease.lost:
                        self._renew(index, lease)
                except Exception as error:
                    failure = error
        if not self.lost and self._is_lost():
            self._taken()
        if failure is not None:
            raise failure

    def _is_lost(self) -> bool:
        self.lost = self.lost or bool(holders(self._corpus))
        return self.lost

    def require(self, index: int) -> None:
        """Makes sure that a shard is still this owner's, for what may be published of it next; renews its claim if it is old.

        Raises:
            ShardTaken: If the claim is lost or the shard committed.
        """
        with self._lock:
            lease = self._held.get(index)
            young = self._clock() + self._lease_s * (1 - 1.5 / RENEWALS)  # renewed lately: nobody can have taken it over
            if lease is not None and not lease.lost and lease.expires < young:
                self._renew(index, lease)
            if lease is None or lease.lost or self._files.is_committed(index):
                raise ShardTaken(f"shard {index} is another owner's by now; what {self.owner} made of it is dropped")

    def release(self, index: int) -> None:
        """Lets a shard go: all its claims if it is committed, else one's own; it is left to others, not drawn again."""
        with self._lock:
            lease = self._held.pop(index, None)
            if lease is None or lease.lost:  # what there is now is another's
                return
            self._open.discard(index)
            done = self._files.is_committed(index)
            for generation in range(0 if done else lease.generation, lease.generation + 1):
                self._files.remove(index, generation)

    def release_all(self) -> None:
        """Lets go of everything held, as far as storage does; the rest expires."""
        for index in list(self._held):
            with suppress(Exception):
                self.release(index)

    def _left(self) -> list[int]:
        """Shards to be had, from a place on that differs between owners, so that few reach for the same one."""
        with self._lock:
            left = sorted(self._open - self._held.keys())
        start = crc32(self.owner.encode()) % max(1, len(left))
        return left[start:] + left[:start]

    def _take(self, index: int, generation: int) -> bool:
        expires = self._clock() + self._lease_s
        if not self._files.create(index, generation, expires):
            return False
        if self._files.is_committed(index):  # committed, and its claims removed, since the listing
            self._files.remove(index, generation)
            self._open.discard(index)
            return False
        if not self._files.is_mine(index, generation):
            return False
        with self._lock:
            self._held[index] = _Lease(generation, expires)
        return True

    def _renew(self, index: int, lease: _Lease) -> None:
        mine, following = lease.generation, lease.generation + 1
        if not self._files.is_mine(index, mine) or self._files.is_there(index, following):
            lease.lost = True
            return
        expires = self._clock() + self._lease_s
        self._files.rewrite(index, mine, expires)
        lease.expires = expires
        lease.lost = self._files.is_there(index, following)  # taken over while it was being written
