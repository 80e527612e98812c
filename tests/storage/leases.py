"""Leases on a clock of their own, for tests."""

import time
from dataclasses import dataclass, field, replace
from typing import Any

from hybridiff.storage.folder import Folder
from hybridiff.storage.lease import Leases
from hybridiff.storage.owner import Owner

LEASE_S = 60.0
HERE = Owner.here()


@dataclass
class Clock:
    """A time that passes when someone sleeps."""

    now: float = field(default_factory=time.time)
    started: float = 0.0

    def __post_init__(self) -> None:
        self.started = self.now

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    @property
    def passed_s(self) -> float:
        """Seconds since the start."""
        return self.now - self.started


def leases(folder: Folder, owner: str | Owner, clock: Clock, **changed: Any) -> Leases:
    """Leases of a process of another machine, of which nobody here can know whether it is alive."""
    if isinstance(owner, str):
        owner = replace(HERE, id=owner, machine=f"machine of {owner}")
    lease_s = max(LEASE_S, folder.retry_budget_s + 30)
    return Leases(folder, "leases", lease_s, owner, **{"clock": clock, "sleep": clock.sleep, **changed})


def names(*wanted: str) -> Any:
    """What ``acquire_next`` asks for names that are left."""
    return lambda _: list(wanted)
