"""Owners of leases: which process on which machine, and whether it is known to have ended."""

import os
import platform
import secrets
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Owner:
    """A process that holds leases.

    Args:
        id: unique name of this owner
        host: name of its machine
        machine: identity of the machine, its boot and its container: process ids mean something within one only
        pid: process id
        started: start of the process in ticks since boot, as process ids are used again; None where that is not known
        job: id of its job in a batch system or launcher; None outside one
        restart: number of times that the batch system has started the job again
        cluster: SLURM's name of the cluster of the job; None outside SLURM
    """

    id: str
    host: str
    machine: str
    pid: int
    started: int | None
    job: str | None = None
    restart: int = 0
    cluster: str | None = None

    @classmethod
    def here(cls, job: str | None = None, restart: int = 0, cluster: str | None = None) -> "Owner":
        """This process, with an id of its own for each call."""
        host, pid = platform.node(), os.getpid()
        return cls(f"{host}-{pid}-{secrets.token_hex(4)}", host, _machine(), pid, _started(pid), job, restart, cluster)

    def is_gone(self, here: "Owner") -> bool:
        """Whether its process is known to have ended: one of the same machine, or an earlier start of the same batch job."""
        if self.job is not None and self.job == here.job and self.cluster == here.cluster and self.restart < here.restart:
            return True
        return self.machine == here.machine and self.started is not None and _started(self.pid) != self.started

    def __str__(self) -> str:
        return f"process {self.pid}{f' of job {self.job}' if self.job else ''} on {self.host}"


@cache
def _machine() -> str:
    parts = [platform.node()]
    with suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def _started(pid: int) -> int | None:
    """Start of a process in ticks since boot; None if there is no such process, or no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])
