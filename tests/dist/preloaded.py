"""A launcher that has the libraries loaded already and forks its ranks, so that many short runs fit into minutes.

As a program it reads a line of JSON for each run, ``[ranks, [arguments of generate.py]]``; it answers with the process id of what
stands for torchrun, which starts the ranks and ends those that are left when one fails, and with its exit code when that ends.
"""

import faulthandler
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tests.dist.processes import ENVIRONMENT, ROOT


class Preloaded:
    """Starts runs of jobs/generate.py, one at a time, under launchers that are forked.

    Args:
        output: File for what all ranks of all runs print.
    """

    def __init__(self, output: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.dist.preloaded"],
            cwd=ROOT,
            env=os.environ | ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output.open("w"),
            text=True,
            bufsize=1,
            start_new_session=True,
        )

    def start(self, ranks: int, *arguments: str) -> "Run":
        """Starts one run on so many ranks."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([ranks, arguments]) + "\n")
        return Run(int(self._process.stdout.readline()), self._process)

    def close(self) -> None:
        """Ends the program."""
        self._process.kill()
        self._process.communicate()


class Run:
    """A run of a preloaded launcher; the part of ``subprocess.Popen`` that tests need.

    Args:
        pid: Of the launcher.
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
    import diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl  # noqa: F401
    import torch

    from hybridiff.cli.config import parse  # noqa: F401
    from hybridiff.runner import job, run, summary  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        ranks, arguments = json.loads(line)
        pid = os.fork()
        if not pid:
            os._exit(launch(ranks, arguments))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def launch(ranks: int, arguments: list[str]) -> int:
    """What torchrun does: starts the ranks, and ends the others when one fails."""
    os.setsid()
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    running = set()
    for rank in range(ranks):
        pid = os.fork()
        if not pid:
            os._exit(draw(rank, ranks, port, arguments))
        running.add(pid)
    failed = False
    while running:
        pid, status = os.wait()
        running.discard(pid)
        if status and not failed:
            failed = True
            time.sleep(0.1)  # torchrun looks ten times a second
            for other in running:
                os.kill(other, signal.SIGTERM)
    return int(failed)


def draw(rank: int, ranks: int, port: int, arguments: list[str]) -> int:
    """One rank of generate.py."""
    from hybridiff import cli
    from hybridiff.secrets import report_crash

    os.setsid()
    faulthandler.register(signal.SIGUSR2, all_threads=True)  # for whoever finds that it does not end
    place = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "preloaded"} if ranks > 1 else {}
    os.environ.update({name: str(value) for name, value in place.items()} if ranks > 1 else {})
    os.dup2(2, 1)  # standard output is where the answers go
    sys.argv = ["jobs/generate.py", *arguments]
    try:
        return cli.main(["generate", *arguments])
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        report_crash(*sys.exc_info())  # type: ignore[arg-type]
        return 1


if __name__ == "__main__":
    serve()
