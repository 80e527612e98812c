"""A launcher that has the libraries loaded already and forks its ranks, so that many short runs fit into minutes.

As a program it reads a line of JSON for each run, ``[ranks, [arguments of generate.py], {faults}]``; it answers with the
process id of what stands for torchrun, which starts the ranks and ends those that are left when one fails, and when that ends
with the exit code of the rank that ended first with another than 0 (128 and the signal's number, if it was killed).
"""

import errno
import faulthandler
import json
import os
import random
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.dist.processes import ENVIRONMENT, ROOT

_real_time = time.time
_clock_s = [0.0]


@dataclass(frozen=True)
class Faults:
    """What is wrong for the ranks of a run.

    Args:
        clock_s: seconds by which their clocks are ahead.
        storage: probability that flushing, renaming or linking a file fails.
        largest_file: bytes that a file may have, as on a full disk; what they print is lost then. 0 sets no limit.
        seed: chooses the failures of storage.
        s3_budget_s: seconds for which requests to S3 are retried; 0 leaves them as they are.
    """

    clock_s: float = 0.0
    storage: float = 0.0
    largest_file: int = 0
    seed: int = 0
    s3_budget_s: float = 0.0

    def install(self) -> None:
        """Has the process meet them from now on."""
        _clock_s[0] = self.clock_s
        chance = random.Random(self.seed)

        def failing(call: Callable[..., Any]) -> Callable[..., Any]:
            def attempt(*given: Any, **options: Any) -> Any:
                if chance.random() < self.storage:
                    raise OSError(errno.EIO, os.strerror(errno.EIO), *(str(one) for one in given[:1]))
                return call(*given, **options)

            return attempt

        if self.storage:
            for name in ("fsync", "replace", "link"):
                setattr(os, name, failing(getattr(os, name)))
        if self.s3_budget_s:
            from hybridiff.storage.s3 import RetryingS3

            RetryingS3.retry_budget_s = self.s3_budget_s
        if self.largest_file:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.largest_file, self.largest_file))


NO_FAULTS = Faults()


class Preloaded:
    """Starts runs of jobs/generate.py, one at a time, under launchers that are forked.

    Args:
        output: File for what all ranks of all runs print.
        environment: further variables of their environment.
    """

    def __init__(self, output: Path, environment: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.dist.preloaded"],
            cwd=ROOT,
            env=os.environ | ENVIRONMENT | dict(environment or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output.open("w"),
            text=True,
            bufsize=1,
            start_new_session=True,
        )

    def start(self, ranks: int, *arguments: str, faults: Faults = NO_FAULTS) -> "Run":
        """Starts one run on so many ranks."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([ranks, arguments, asdict(faults)]) + "\n")
        return Run(int(self._process.stdout.readline()), self._process)

    def close(self) -> None:
        """Ends the program."""
        self._process.kill()
        self._process.communicate()


class Run:
    """A run of a preloaded launcher; the part of ``subprocess.Popen`` that tests need.

    Args:
        pid: process id of the launcher.
        parent: The program that has forked it.
    """

    def __init__(self, pid: int, parent: "subprocess.Popen[str]") -> None:
        self.pid = pid
        self._parent = parent
        self._code: int | None = None

    def wait(self, timeout: float) -> int:
        """The launcher's exit code.

        Raises:
            subprocess.TimeoutExpired: it has not ended.
        """
        if self._code is None:
            assert self._parent.stdout is not None
            if not select.select([self._parent.stdout], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("preloaded", timeout)
            self._code = int(self._parent.stdout.readline())
        return self._code

    def poll(self) -> int | None:
        """The launcher's exit code, None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None


def serve() -> None:
    """Answers the lines of standard input until it ends."""
    time.time = lambda: _real_time() + _clock_s[0]  # before anyone keeps it
    import diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl  # noqa: F401
    import torch

    from hybridiff.cli.config import parse  # noqa: F401
    from hybridiff.runner import job, run, summary  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        ranks, arguments, faults = json.loads(line)
        pid = os.fork()
        if not pid:
            os._exit(launch(ranks, arguments, Faults(**faults)))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def launch(ranks: int, arguments: list[str], faults: Faults) -> int:
    """What torchrun does: starts the ranks, and ends the others when one fails."""
    os.setsid()
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    running = set()
    for rank in range(ranks):
        pid = os.fork()
        if not pid:
            os._exit(run_rank(rank, ranks, port, arguments, faults))
        running.add(pid)
    failed = 0
    while running:
        pid, status = os.wait()
        running.discard(pid)
        if status and not failed:
            code = os.waitstatus_to_exitcode(status)
            failed = code if code > 0 else 128 - code
            time.sleep(0.1)  # torchrun looks ten times a second
            for other in running:
                os.kill(other, signal.SIGTERM)
    return failed


def run_rank(rank: int, ranks: int, port: int, arguments: list[str], faults: Faults) -> int:
    """One rank of generate.py."""
    from hybridiff import cli
    from hybridiff.secrets import report_crash

    os.setsid()
    faulthandler.register(signal.SIGUSR2, all_threads=True)  # to debug a run that does not end
    place = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "preloaded"} if ranks > 1 else {}
    os.environ.update({name: str(value) for name, value in place.items()} if ranks > 1 else {})
    os.dup2(2, 1)  # standard output is where the answers go
    sys.argv = ["jobs/generate.py", *arguments]
    faults.install()
    try:
        return cli.main(["generate", *arguments])
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        report_crash(*sys.exc_info())  # type: ignore[arg-type]
        return 1


if __name__ == "__main__":
    serve()
