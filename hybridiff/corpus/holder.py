"""Who holds a corpus: a process, by what tells it from others, and whether it is gone."""

import json
import os
import platform
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

STALE_S = 300.0  # without a sign of life; clocks of machines should agree to within minutes


@dataclass(frozen=True)
class Holder:
    """Who holds a corpus.

    Args:
        host: Name of the machine.
        machine: Tells machines and their containers apart, until they are booted again.
        pid: Process id.
        started: Of the process, in ticks since boot, as ids are used again.
        job: Of a batch system or launcher; None if there is none.
        since: Seconds since 1970; ``seen`` likewise, the last sign of life.
        restart: How often the batch system has started the job again.
        cluster: SLURM's name of where the job runs; None if it is not SLURM's.
    """

    host: str
    machine: str
    pid: int
    started: int | None
    job: str | None
    since: float
    seen: float
    restart: int = 0
    cluster: str | None = None

    @classmethod
    def here(cls, job: str | None = None, restart: int = 0, cluster: str | None = None) -> "Holder":
        """This process."""
        now = time.time()
        return cls(platform.node(), _machine(), os.getpid(), _started(os.getpid()), job, now, now, restart, cluster)

    @classmethod
    def read(cls, content: bytes) -> "Holder":
        """What a lock says.

        Raises:
            ValueError: If it does not say just this.
        """
        try:
            holder = cls(**json.loads(content))
            str(holder)  # needs times that there are
        except (TypeError, OverflowError, OSError) as error:
            raise ValueError(str(error)) from error
        if not all(isinstance(number, (int, float)) for number in (holder.pid, holder.since, holder.seen, holder.restart)):
            raise ValueError("no number where one belongs")
        return holder

    def succeeded_by(self, other: "Holder") -> bool:
        """Whether the other is a later run of the same batch job, which starts only when the earlier one has ended."""
        return self.job is not None and self.job == other.job and self.restart < other.restart

    def gone(self) -> bool:
        """Whether the process has ended, as far as can be known from here, or has given no sign of life for minutes."""
        if self.machine == _machine() and self.started is not None:
            return _started(self.pid) != self.started
        return time.time() - self.seen > STALE_S

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
        job = f" of job {self.job}" if self.job else ""
        return f"process {self.pid}{job} on {self.host}, since {since}, last seen {max(0.0, time.time() - self.seen):.0f} s ago"


NOBODY = Holder(host="", machine="", pid=0, started=None, job=None, since=0.0, seen=0.0)
"""Who holds what was taken away for runs that share it: gone for ever."""


class UnknownHolder(Holder):
    """Who holds a corpus by a lock that can't be read, as another version may write it.

    Args:
        written: When the lock was written, by the storage's clock.
    """

    def __init__(self, written: datetime) -> None:
        seconds = written.timestamp()
        super().__init__(host="", machine="", pid=0, started=None, job=None, since=seconds, seen=seconds)

    def __str__(self) -> str:
        ago_s = max(0.0, time.time() - self.seen)
        return f"a run whose lock can't be read, as of another version, last written {ago_s:.0f} s ago"


def _machine() -> str:
    parts = [platform.node()]
    with suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def _started(pid: int) -> int | None:
    """When a process was started, in ticks since boot; None if there is none, or no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])
