"""SIGKILL at random moments, again and again, with other numbers of ranks each time: the corpus is as if nothing had been.

HYBRIDIFF_SOAK is the number of kills (30 by default), HYBRIDIFF_SOAK_SEED chooses the moments. Every sixth run is torchrun's; the
others are forked from a process that has the libraries loaded, as loading them takes longer than the run.
"""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.dist.preloaded import Preloaded, Run
from tests.dist.processes import descendants, run, start
from tests.dist.test_generate import contents
from tests.dist.test_signals import arguments, committed

KILLS = int(os.environ.get("HYBRIDIFF_SOAK", "30"))
SEED = int(os.environ.get("HYBRIDIFF_SOAK_SEED", "0"))
SHARDS = 12
RUN_S = 60.0  # that is allowed for a rank to end after its peer was killed
Process = Run | subprocess.Popen[str]


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Preloaded]:
    output = tmp_path_factory.mktemp("soak") / "output.txt"
    launcher = Preloaded(output)
    yield launcher
    launcher.close()
    print(output.read_text())


def given(directory: Path) -> list[str]:
    return arguments(directory, 1, "--output.shard_size=2", "--sampling.steps=4", "--parallel.timeout_s=20")


def strike(process: Process, victim: str, chance: random.Random) -> None:
    """Kills one rank, all of them, or what has started them."""
    ranks = descendants(process.pid)
    if isinstance(process, subprocess.Popen):
        ranks = [pid for pid in ranks if b"generate.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    ranks = ranks or [process.pid]
    chosen = {"one rank": [chance.choice(ranks)], "all ranks": ranks, "launcher": [process.pid]}[victim]
    for pid in chosen:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def settle(process: Process, ranks: list[int]) -> None:
    """Waits until all has ended: the launcher, and ranks that it could no longer end itself."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(RUN_S)
    deadline = time.monotonic() + RUN_S
    while any(map(alive, ranks)) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = [pid for pid in [process.pid, *ranks] if alive(pid)]
    for number in (signal.SIGUSR2, signal.SIGKILL):  # the first has it say where it is
        for pid in filter(alive, left):
            os.kill(pid, number)
        time.sleep(1.0 if left else 0.0)
    assert not left, "ranks outlive their launcher"


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has asked about does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def disturb(process: Process, pause_s: float, victim: str, chance: random.Random) -> bool:
    """Lets a run go on for some seconds, then kills of it what is named; returns whether it had ended before."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(pause_s)
    ended = process.poll() is not None
    ranks = descendants(process.pid)
    strike(process, victim, chance)
    settle(process, ranks)
    return ended


@pytest.mark.timeout(120 + 30 * KILLS)
def test_killed_at_random_moments_and_run_again(tmp_path: Path, preloaded: Preloaded) -> None:
    quiet = tmp_path / "quiet"
    quiet.mkdir()
    run(1, *given(quiet)).succeeded()
    chance = random.Random(SEED)
    longest_s = 8.0
    soaked = quiet
    for turn in range(KILLS):
        if len(committed(soaked)) == SHARDS:  # of the one before there is nothing left to do
            soaked = tmp_path / f"soaked{turn}"
            soaked.mkdir()
        before = set(committed(soaked))
        real = turn % 6 == 5
        ranks, victim = (2, 3)[turn % 4 // 2], "launcher"
        if not real:
            ranks, victim = (1, 2, 3)[turn % 3], chance.choice(("all ranks", "one rank", "launcher"))
        process = start(ranks, *given(soaked)) if real else preloaded.start(ranks, *given(soaked)[1:])
        ended = disturb(process, chance.uniform(0, longest_s) + 8 * real, victim, chance)
        longest_s = max(1.0, longest_s / 1.5) if ended else longest_s
        after = set(committed(soaked))
        assert before <= after, (turn, ranks, victim)
        open_shards = {path.name.split(".")[1] for path in (soaked / "corpus" / "images").glob(".*.tmp")}
        assert len(open_shards - after) <= ranks, "at most one shard of each group is made again"
        if len(after) == SHARDS:
            run_again(preloaded, soaked, ranks, quiet)
    run_again(preloaded, soaked, 2, quiet)


def run_again(preloaded: Preloaded, soaked: Path, ranks: int, quiet: Path) -> None:
    """Undisturbed at last: the corpus has the bytes of one that always was."""
    assert preloaded.start(ranks, *given(soaked)[1:]).wait(120) == 0
    assert contents(soaked / "corpus") == contents(quiet / "corpus")
