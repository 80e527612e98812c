"""Starts jobs as a user would, bounds their time, shows every rank's output on failure, and leaves nothing running."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "TRANSFORMERS_VERBOSITY": "error"}


@dataclass(frozen=True)
class Finished:
    """A command that has ended: its exit code and everything that all its ranks printed."""

    code: int
    output: str

    def succeeded(self) -> "Finished":
        """Itself, if the exit code is 0."""
        assert self.code == 0, f"exit code {self.code}; all output:\n{self.output}"
        return self


def command(ranks: int, *arguments: str) -> list[str]:
    """Plain python for one rank, torchrun for more."""
    python = [sys.executable]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    return [*python, *launcher, *arguments]


def start(ranks: int, *arguments: str) -> subprocess.Popen[str]:
    """Starts a command, which the caller waits for or kills."""
    return subprocess.Popen(
        command(ranks, *arguments),
        cwd=ROOT,
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL to a command and all that it started, ranks first; torchrun gives each rank a session of its own."""
    for pid in reversed([process.pid, *descendants(process.pid)]):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def descendants(pid: int) -> list[int]:
    """The children of a process, their children, and so on."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            children += map(int, task.read_text().split())
    return [*children, *(one for child in children for one in descendants(child))]


def finish(process: subprocess.Popen[str], timeout_s: float = 100) -> str:
    """The whole output of a command that ends by itself; shown if that takes longer, or longer than the test may."""
    try:
        return process.communicate(timeout=timeout_s)[0]
    except BaseException as error:  # that of pytest's timeout is no Exception
        kill(process)
        output = process.communicate()[0]
        if not isinstance(error, subprocess.TimeoutExpired):
            print(output)
            raise
        raise AssertionError(f"not finished after {timeout_s} s; all output:\n{output}") from None


def run(ranks: int, *arguments: str, timeout_s: float = 240) -> Finished:
    """Runs a command to its end, or kills all of it after ``timeout_s``."""
    process = start(ranks, *arguments)
    output = finish(process, timeout_s)
    return Finished(process.returncode, output)
