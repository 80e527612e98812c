"""Leases: which process may work on what, without a server, as small objects in a folder.

A lease on a name is ``<name>.<generation>.json``, created only if absent, so of several processes one gets it. Its owner alone
writes it again, to renew it. A process that finds it expired, or its owner ended, creates the next generation, by which the older
lease is lost; the highest generation counts. Nothing is needed of the storage but creation of what is absent. Clocks of machines
should agree within a third of a lease: one that does not costs work done twice.

A lease keeps other processes away; it does not stop one that stalls between asking and writing. So an owner calls ``require``
right before it publishes or removes anything, and what must never happen twice is created only if absent too.
"""

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from zlib import crc32

from hybridiff.config.data_config import LONGEST_LEASE_S
from hybridiff.errors import UsageError
from hybridiff.storage.folder import Folder
from hybridiff.storage.lease_file import Lease, latest_generations, lease_file, read_lease, read_leases, write_lease
from hybridiff.storage.owner import Owner

RENEWALS = 3  # per lease
LOOKS = 12  # per lease, at the leases of others
LEASE_S = 150.0  # where no option sets it: beyond the retry budget of any storage
MARGIN_S = 30.0  # of a lease, beyond the time for which requests to its storage are retried


class LeaseLost(RuntimeError):
    """Another owner has the lease by now, or what it was for is done: nothing more may be published under it."""


class AcquireStopped(RuntimeError):
    """Asked to stop while there was something left to acquire."""


class _Watch:
    """What one waiting call has seen of the leases of others."""

    def __init__(self, leases: "Leases") -> None:
        self._leases = leases
        self._first: dict[str, Lease] = {}
        self._ended: dict[str, bool] = {}  # answers about jobs

    def is_renewed(self, lease: Lease) -> bool:
        """Whether a lease was renewed since it was first seen: its owner is alive."""
        first = self._first.setdefault(lease.name, lease)
        return (lease.generation, lease.expires) > (first.generation, first.expires)

    def is_free(self, lease: Lease) -> bool:
        """Whether a lease may be taken over: expired, not renewed for as long as it lasts, or of an owner that has ended."""
        now, owner, here = self._leases.clock(), lease.owner, self._leases.owner
        unchanged_s = self._leases.unchanged_s(lease)
        if lease.expires <= now or unchanged_s >= min(lease.lease_s, LONGEST_LEASE_S):
            return True
        if owner is None or lease.is_of(here):
            return False
        return owner.is_gone(here) or (owner.job not in (None, here.job) and self._job_ended(owner))

    def _job_ended(self, owner: Owner) -> bool:
        job = f"{owner.cluster} {owner.job}"
        if job not in self._ended:
            self._ended[job] = self._leases.job_ended(owner)
        return self._ended[job]


@dataclass
class Leases:
    """Leases of one owner on names in a directory of a folder. Threads may share it.

    Args:
        folder: where the directory is; its storage must create a file only if it is absent
        directory: its name inside the folder
        lease_s: seconds after which a lease that was not renewed is free
        owner: this process by default
        is_done: whether what a lease is for is done, so that nobody needs it any more
        job_ended: whether the batch system says that the job of an owner has ended; asked once for a job in a call that waits
        clock: seconds since 1970
        sleep: waits for seconds, or less
    """

    folder: Folder
    directory: str
    lease_s: float
    owner: Owner = field(default_factory=Owner.here)
    is_done: Callable[[str], bool] = lambda _: False
    job_ended: Callable[[Owner], bool] = lambda _: False
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        assert self.folder.creates_if_absent, self.folder.url
        self._held: dict[str, Lease] = {}  # until it is released, or found to be lost
        self._seen: dict[str, tuple[Lease, float]] = {}  # each lease of others, and when it was first read as it is
        self._latest: dict[str, int] = {}  # generations of the leases of the last listing
        self._listed = -math.inf
        self._lock = threading.RLock()

    @property
    def held(self) -> frozenset[str]:
        """Names whose leases were acquired and neither lost nor released."""
        with self._lock:
            return frozenset(self._held)

    def unchanged_s(self, lease: Lease) -> float:
        """Seconds by this owner's clock for which a lease was read as it is, in one call or in several."""
        now = self.clock()
        seen, since = self._seen.get(lease.name, (None, now))
        if seen != lease:
            self._seen[lease.name] = (lease, now)
            return 0.0
        return now - since

    def acquire(self, name: str) -> bool:
        """Acquires the lease on one name if it is free, without waiting; returns whether it did."""
        if name in self.held:
            return True
        lease = self._current(name)
        if lease is None:
            return self._take(name, 0)
        return _Watch(self).is_free(lease) and self._take(name, lease.generation + 1)

    def acquire_next(self, left: Callable[[bool], Sequence[str]], stop: Callable[[], bool] = lambda: False) -> str | None:
        """Acquires the first free one of several names; None if all are done or held by live owners.

        Where none is free, it waits until each of their leases was renewed (its owner is alive) or expired (it is acquired), for
        little more than ``lease_s``.

        Args:
            left: the names that are not done, in order of preference; called with True if it must look at the storage again
            stop: whether nothing more is to be acquired; asked again and again while something is left

        Raises:
            AcquireStopped: ``stop`` said so.
        """
        if self.clock() < self._listed + self.lease_s / RENEWALS and not stop():
            name = self._take_unleased(left(False))  # what others acquired since the listing shows when it is created
            if name is not None:
                return name
        watch = _Watch(self)
        for _ in range(LOOKS + 2):
            self._list()  # before names that are done: a lease that is gone by now may have left such a one
            names = [name for name in left(True) if name not in self.held]
            if names and stop():
                raise AcquireStopped
            name = self._take_unleased(names)
            if name is not None:
                return name
            others = self._read(names)
            for lease in others.values():
                if watch.is_free(lease) and self._take(lease.name, lease.generation + 1):
                    return lease.name
            if len(others) == len(names) and all([watch.is_renewed(lease) for lease in others.values()]):
                return None
            self.sleep(self.lease_s / LOOKS)
        return None

    def wait(self, name: str, stop: Callable[[], bool], look_s: float) -> bool:
        """Waits while another live owner holds the lease on a name; returns whether it is free now.

        Args:
            name: name of the lease
            stop: whether to stop waiting, as when what the owner makes is there
            look_s: seconds between two looks
        """
        watch = _Watch(self)
        while not stop():
            lease = self._current(name)
            if lease is None or watch.is_free(lease):
                return True
            self.sleep(look_s)
        return False

    def renew(self) -> None:
        """Renews the leases that are held; one that another owner has is lost. An error with one is raised after all."""
        failure: Exception | None = None
        for name in sorted(self.held):
            with self._lock:
                try:
                    if name in self._held:
                        self._renew(name)
                except Exception as error:
                    failure = error
        if failure is not None:
            raise failure

    def require(self, name: str) -> None:
        """Makes sure that a lease is still held, for what is published or removed next; renews it once half of it has passed.

        Raises:
            LeaseLost: it is another owner's, or what it was for is done.
        """
        with self._lock:
            held = self._held.get(name)
            if held is not None and held.expires < self.clock() + self.lease_s / 2:
                self._renew(name)
            elif held is not None:
                self._drop_if_lost(name)
            if name not in self._held or self.is_done(name):
                raise LeaseLost(f"the lease on {name} is another owner's, or its work is done; {self.owner} leaves it")

    def took_over(self, name: str) -> bool:
        """Whether a lease that is held was another owner's, who did not release it."""
        with self._lock:
            return name in self._held and self._held[name].generation > 0

    def release(self, name: str) -> None:
        """Removes a lease and those of owners before, which did not; without effect if it is not held."""
        with self._lock:
            held = self._held.pop(name, None)
            if held is None or not self._is_mine(held):  # what there is now is another's
                return
            for generation in range(held.generation + 1):  # the highest last, as it counts
                with suppress(FileNotFoundError):
                    self.folder.remove(lease_file(self.directory, name, generation))

    def release_all(self) -> None:
        """Releases all that is held, as far as storage does; the rest expires."""
        for name in list(self._held):
            with suppress(Exception):
                self.release(name)

    @contextmanager
    def heartbeat(self) -> Iterator["Leases"]:
        """Renews what is held on a thread of its own until the body ends, and then releases what is left."""
        ended = threading.Event()

        def renew_all() -> None:
            while not ended.wait(self.lease_s / RENEWALS):
                with suppress(Exception):  # storage out of reach: tried again, and ``require`` asks before a commit
                    self.renew()

        thread = threading.Thread(target=renew_all, name="renew leases", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            ended.set()
            thread.join()
            self.release_all()

    def _list(self) -> None:
        self._latest = latest_generations(self.folder, self.directory)
        self._listed = self.clock()

    def _read(self, names: Iterable[str]) -> dict[str, Lease]:
        """The leases on these names, as far as there were any when last listed and are now."""
        return read_leases(self.folder, self.directory, {name: self._latest[name] for name in names if name in self._latest})

    def _current(self, name: str) -> Lease | None:
        self._list()
        return self._read([name]).get(name)

    def _take_unleased(self, names: Iterable[str]) -> str | None:
        """Acquires the first name that had no lease when last listed.

        After a name that another owner was quicker to get it goes on elsewhere, so that few reach for the same one.
        """
        free = [name for name in names if name not in self._latest and name not in self.held]
        while free:
            name = free.pop(0)
            if self._take(name, 0):
                return name
            self._latest[name] = 0
            place = crc32(self.owner.id.encode()) % max(1, len(free))
            free = free[place:] + free[:place]
        return None

    def _take(self, name: str, generation: int) -> bool:
        now = self.clock()
        lease = Lease(name, generation, self.owner, now, now + self.lease_s, self.lease_s)
        try:
            write_lease(self.folder, self.directory, lease, exclusive=True)
        except FileExistsError:
            return False
        if self.is_done(name):  # done, and its leases removed, since the listing
            with suppress(FileNotFoundError):
                self.folder.remove(lease_file(self.directory, name, generation))
            return False
        if not self._is_mine(lease):
            return False
        with self._lock:
            self._held[name] = lease
        return True

    def _renew(self, name: str) -> None:
        self._drop_if_lost(name)
        if name in self._held:
            renewed = replace(self._held[name], expires=self.clock() + self.lease_s)
            write_lease(self.folder, self.directory, renewed, exclusive=False)
            self._held[name] = renewed
            self._drop_if_lost(name)  # taken over while it was being written

    def _drop_if_lost(self, name: str) -> None:
        """Forgets a lease that is another owner's by now."""
        held = self._held[name]
        if not self._is_mine(held) or read_lease(self.folder, self.directory, name, held.generation + 1) is not None:
            del self._held[name]

    def _is_mine(self, held: Lease) -> bool:
        """Whether a lease is there and names this owner: storage may let several create it at once, and keep the last (Swift)."""
        found = read_lease(self.folder, self.directory, held.name, held.generation)
        return found is not None and found.is_of(self.owner)


def check_lease(folder: Folder, lease_s: float) -> None:
    """Raises UsageError where leases end while their owner still retries a request to the storage."""
    budget_s = folder.retry_budget_s
    if budget_s and lease_s < budget_s + MARGIN_S:
        allowed = f"{budget_s + MARGIN_S:g} to {LONGEST_LEASE_S:g} seconds there, where requests are retried for {budget_s:g} s"
        raise UsageError(f"data.lease_s is {lease_s:g} and {folder.option} {folder.url}; allowed: {allowed}")
