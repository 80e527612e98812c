"""Jobs on the tests' SLURM: submitted as users submit them, watched by scontrol and by what they commit."""

import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.dist.processes import ROOT
from tests.services.slurm import Slurm

WAIT_S = 400.0
POLL_S = 0.2
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED")


class Jobs:
    """The jobs of one test.

    Args:
        slurm: running.
        folder: directory of their logs.

    Attributes:
        numbers: job numbers.
    """

    def __init__(self, slurm: Slurm, folder: Path) -> None:
        self.slurm = slurm
        self.folder = folder
        self.numbers: list[str] = []
        self._hold = folder / "hold"
        self.environment = {
            "HYBRIDIFF_ENV": f"venv:{sys.prefix}",
            "HYBRIDIFF_LOGS": str(folder / "ranks"),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "TRANSFORMERS_VERBOSITY": "error",
        }

    def submit(self, *words: str, **environment: str) -> str:
        """Submits with sbatch; the job's number."""
        given = ("--parsable", "--time=30", f"--output={self.folder}/%j.out", *words)
        number = self.slurm.do("sbatch", *given, cwd=ROOT, environment=self.environment | environment)
        return self.adopt(number)

    def submit_held(self, *words: str, held_s: float = 2.0, **environment: str) -> str:
        """The same, but its ranks take seconds for each batch until they are released: it does not end before that."""
        return self.submit(*words, **self.held(held_s), **environment)

    def held(self, held_s: float = 2.0) -> dict[str, str]:
        """Variables with which each batch of a job takes so many seconds until it is released."""
        python = self.folder / "bin/python"
        python.parent.mkdir(exist_ok=True)
        held = f'if [ "$2 $3" = "hybridiff generate" ]; then shift 3; set -- {ROOT}/tests/slurm/held_generate.py "$@"; fi'
        python.write_text(f'#!/bin/sh\n{held}\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        self._hold.touch()
        return {"HYBRIDIFF_ENV": f"venv:{self.folder}", "HOLD": str(self._hold), "HELD_S": str(held_s)}

    def release(self) -> None:
        """Lets held jobs run as fast as they can."""
        self._hold.unlink(missing_ok=True)

    def adopt(self, number: str) -> str:
        """Adds a job that was submitted otherwise; its number."""
        self.numbers.append(number)
        return number

    def field(self, job: str, name: str) -> str:
        """What scontrol says of a job, or of a task of an array."""
        found = re.search(rf"\b{name}=(\S+)", self.slurm.do("scontrol", "show", "job", "--oneliner", job))
        return found[1] if found else ""

    def restarts(self, job: str) -> int:
        """How often it was requeued."""
        return int(self.field(job, "Restarts") or 0)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Waits for a condition."""
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, f"waited {WAIT_S} s for {what}"
            time.sleep(POLL_S)

    def ended(self, job: str) -> str:
        """Waits until a job is over; its state."""
        self.until(lambda: self.field(job, "JobState") in OVER, f"the end of job {job}")
        return self.field(job, "JobState")

    def completed(self, job: str) -> None:
        """Waits until a job is over, which must have gone well."""
        state = self.ended(job)
        assert state == "COMPLETED", f"job {job} is {state}"

    def log(self, job: str) -> str:
        """The job's own log; of an array task by its plain number."""
        return "".join(path.read_text() for path in self.folder.glob(f"{job}.out"))

    def reported(self, words: str) -> bool:
        """Whether the log of a rank holds these words."""
        return any(words in path.read_text() for path in self.folder.rglob("*-rank*.log"))

    def logs(self) -> str:
        """All logs."""
        paths = sorted([*self.folder.glob("*.out"), *self.folder.rglob("*.log")], key=os.path.getmtime)
        states = "".join(f"{self.slurm.do('scontrol', 'show', 'job', job)}\n" for job in self.numbers)
        return states + "".join(f"\n--- {path}\n{path.read_text()[-3000:]}" for path in paths)

    def cancel(self) -> None:
        """Cancels what still runs."""
        for job in self.numbers:
            self.slurm.do("scancel", "--quiet", job)
        running = ("RUNNING", "COMPLETING")
        self.until(lambda: not any(self.field(job, "JobState") in running for job in self.numbers), "cancelled jobs")
