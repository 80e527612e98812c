"""Leases as files, ``<name>.<generation>.json`` in a directory: what they say, and which of them count."""

import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from hybridiff.storage.folder import Folder, parse_json, read_each
from hybridiff.storage.owner import Owner

UNREADABLE_S = 120.0  # after which a lease that can't be read counts as expired
_NAME = re.compile(r"(.+)\.(\d+)\.json")


@dataclass(frozen=True)
class Lease:
    """A lease on a name.

    Args:
        name: what it is on
        generation: number of owners before this one that did not release it
        owner: None if the lease can't be read, as of another version or a process killed in the middle of creating it
        since: seconds since 1970 at which it was acquired
        expires: seconds since 1970, by its owner's clock, after which it is free unless renewed
        lease_s: seconds that a renewal adds
    """

    name: str
    generation: int
    owner: Owner | None
    since: float
    expires: float
    lease_s: float

    def __str__(self) -> str:
        who = "a process whose lease can't be read" if self.owner is None else str(self.owner)
        return f"{who}, since {datetime.fromtimestamp(self.since, UTC):%Y-%m-%d %H:%M:%S} UTC"

    def is_of(self, owner: Owner) -> bool:
        """Whether this owner has it."""
        return self.owner is not None and self.owner.id == owner.id


def lease_file(directory: str, name: str, generation: int) -> str:
    """Name of a lease's file inside its folder."""
    return f"{directory}/{name}.{generation}.json"


def latest_generations(folder: Folder, directory: str) -> dict[str, int]:
    """The highest generation of each name's leases, with one listing."""
    matches = (match for match in map(_NAME.fullmatch, folder.names(directory)) if match)
    return dict(sorted((match[1], int(match[2])) for match in matches))


def live_leases(folder: Folder, directory: str, clock: Callable[[], float] = time.time) -> dict[str, Lease]:
    """The leases that have not expired and whose owners are not known to be gone, by name."""
    here = Owner.here()
    leases = read_leases(folder, directory, latest_generations(folder, directory))
    return {
        name: lease
        for name, lease in leases.items()
        if lease.expires > clock() and not (lease.owner is not None and lease.owner.is_gone(here))
    }


def read_leases(folder: Folder, directory: str, generations: dict[str, int]) -> dict[str, Lease]:
    """Leases by name, given their generations, without those released meanwhile."""
    found = read_each(lambda name: read_lease(folder, directory, name, generations[name]), generations)
    return {name: lease for name, lease in found.items() if lease is not None}


def read_lease(folder: Folder, directory: str, name: str, generation: int) -> Lease | None:
    """A lease; None if there is none. One that can't be read lasts for ``UNREADABLE_S`` from its writing."""
    path = lease_file(directory, name, generation)
    try:
        document = parse_json(folder.read(path))
        owner = Owner(**document["owner"])
        numbers = [document[field] for field in ("since", "expires", "lease_s")]
        if not all(type(number) in (int, float) and 0 <= number < 1e11 for number in [*numbers, owner.pid, owner.restart]):
            raise ValueError("no number where one belongs")
        return Lease(name, generation, owner, *numbers)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError):
        written = folder.modified(path)
        seconds = 0.0 if written is None else written.timestamp()
        return None if written is None else Lease(name, generation, None, seconds, seconds + UNREADABLE_S, UNREADABLE_S)


def write_lease(folder: Folder, directory: str, lease: Lease, exclusive: bool) -> None:
    """Writes a lease of an owner.

    Raises:
        FileExistsError: ``exclusive``, and there is one.
    """
    assert lease.owner is not None, lease
    said = {"owner": asdict(lease.owner), "since": lease.since, "expires": lease.expires, "lease_s": lease.lease_s}
    data = (json.dumps(said) + "\n").encode()
    folder.publish(lease_file(directory, lease.name, lease.generation), data, exclusive=exclusive)
