"""slurm/rank.sh without a SLURM: signals come to it alone, as on clusters that signal only what they have started themselves."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dist.processes import ENVIRONMENT, ROOT, kill

READY_S, END_S = 120.0, 60.0
RANK = """
import os, pathlib, signal, sys, time
assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
def stop(number, frame):
    print("stopped by", signal.Signals(number).name)
    sys.exit(85)
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, stop)
pathlib.Path(os.environ["LOGS"], f"ready{os.environ.get('RANK', 0)}").touch()
time.sleep(100)
"""
LOCAL = ["-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]


class Task:
    """What srun starts on a node: rank.sh with a command.

    Args:
        logs: Directory of its logs.
        words: the command.
        environment: variables that SLURM sets for the task, and more.
    """

    def __init__(self, logs: Path, *words: str, **environment: str) -> None:
        self.logs = logs
        given = os.environ | ENVIRONMENT | {"LOGS": str(logs), "SLURM_NODEID": "1", "SLURM_PROCID": "3"} | environment
        command = ["bash", "slurm/rank.sh", *words]
        self.process = subprocess.Popen(command, cwd=ROOT, env=given, text=True, start_new_session=True)

    def ready(self, ranks: int = 1) -> None:
        """Waits until its ranks handle signals."""
        deadline = time.monotonic() + READY_S
        while len(list(self.logs.glob("ready*"))) < ranks:
            assert time.monotonic() < deadline and self.process.poll() is None, self.files()
            time.sleep(0.05)

    def files(self) -> dict[str, str]:
        """What it has written, by name."""
        return {path.name: path.read_text() for path in self.logs.glob("node*")}


@pytest.fixture
def task(tmp_path: Path) -> Iterator[Task]:
    """One rank of srun."""
    started = Task(tmp_path, sys.executable, "-c", RANK)
    try:
        yield started
    finally:
        kill(started.process)


@pytest.mark.parametrize(("sent", "received"), [("SIGUSR1", "SIGUSR1"), ("SIGTERM", "SIGTERM"), ("SIGINT", "SIGTERM")])
def test_a_signal_to_the_script_alone_stops_its_rank(task: Task, sent: str, received: str) -> None:
    task.ready()
    os.kill(task.process.pid, signal.Signals[sent])
    assert task.process.wait(END_S) == 0  # as any other code would have SLURM kill the other groups
    assert task.files() == {"node1-rank3.log": f"stopped by {received}\n", "node1-rank3.code": "85\n"}


@pytest.mark.parametrize("sent", ["SIGUSR1", "SIGTERM"])
def test_a_signal_to_the_script_alone_stops_the_ranks_of_torchrun(tmp_path: Path, sent: str) -> None:
    inner = ["--no-python", "bash", "slurm/rank.sh", sys.executable, "-c", RANK]
    task = Task(tmp_path, sys.executable, *LOCAL, *inner, LAUNCHER="torchrun")
    try:
        task.ready(ranks=2)
        os.kill(task.process.pid, signal.Signals[sent])
        assert task.process.wait(END_S) == 0
    finally:
        kill(task.process)
    ranks = [f"node1-local{rank}-rank{rank}" for rank in (0, 1)]
    files = task.files()
    assert sorted(files) == [*(f"{name}.{kind}" for name in ranks for kind in ("code", "log")), "node1-torchrun.log"]
    assert [files[f"{name}.code"] for name in ranks] == ["85\n"] * 2
    assert [files[f"{name}.log"] for name in ranks] == [f"stopped by {sent}\n"] * 2


@pytest.mark.parametrize(("ends", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137), ("kill -TERM $$", 143)])
def test_how_a_command_ends_is_in_a_file_and_passed_on(tmp_path: Path, ends: str, code: int) -> None:
    task = Task(tmp_path, "bash", "-c", f"echo a word; {ends}")
    assert task.process.wait(END_S) == code
    files = task.files()
    assert files["node1-rank3.code"] == f"{code}\n" and files["node1-rank3.log"].startswith("a word\n")
