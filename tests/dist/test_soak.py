"""SIGKILL at random moments, again and again, with other numbers of ranks each time: the corpus is as if nothing had been.

HYBRIDIFF_SOAK is the number of kills (3 by default), HYBRIDIFF_SOAK_SEED chooses the moments.
"""

import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.dist.processes import descendants, kill, run, start
from tests.dist.test_generate import contents
from tests.dist.test_signals import arguments, committed

KILLS = int(os.environ.get("HYBRIDIFF_SOAK", "3"))
SEED = int(os.environ.get("HYBRIDIFF_SOAK_SEED", "0"))
RUN_S = 60.0  # that is allowed for a rank to end after its peer was killed


def given(directory: Path) -> list[str]:
    return arguments(directory, 1, "--output.shard_size=2", "--sampling.steps=4", "--parallel.timeout_s=20")


def strike(process: subprocess.Popen[str], victim: str, chance: random.Random) -> None:
    """Kills one rank, all of them, or what has started them."""
    ranks = [pid for pid in descendants(process.pid) if b"generate.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    ranks = ranks or [process.pid]
    chosen = {"one rank": [chance.choice(ranks)], "all ranks": ranks, "launcher": [process.pid]}[victim]
    for pid in chosen:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def settle(process: subprocess.Popen[str], ranks: list[int]) -> None:
    """Waits until all has ended: the launcher, and ranks that it could no longer end itself."""
    with suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=RUN_S)
    deadline = time.monotonic() + RUN_S
    while any(map(alive, ranks)) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = [pid for pid in ranks if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    kill(process)
    assert not left, "ranks outlive their launcher"


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has asked about does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.timeout(120 + 120 * KILLS)
def test_killed_at_random_moments_and_run_again(tmp_path: Path) -> None:
    quiet, soaked = tmp_path / "quiet", tmp_path / "soaked"
    for directory in (quiet, soaked):
        directory.mkdir()
    run(1, *given(quiet)).succeeded()
    chance = random.Random(SEED)
    longest_s = 12.0
    for turn in range(KILLS):
        ranks, victim = (1, 2, 3)[turn % 3], ("all ranks", "one rank", "launcher")[chance.randrange(3)]
        before = set(committed(soaked))
        process = start(ranks, *given(soaked))
        began = time.monotonic()
        while not (soaked / "corpus" / "lock").exists() and process.poll() is None and time.monotonic() < began + 60:
            time.sleep(0.02)
        pause_s = chance.uniform(0, longest_s)
        with suppress(subprocess.TimeoutExpired):
            process.wait(pause_s)
        ended = process.poll() is not None
        ranks_before = descendants(process.pid)
        strike(process, victim, chance)
        settle(process, ranks_before)
        after = set(committed(soaked))
        assert before <= after, (turn, ranks, victim)
        longest_s = max(2.0, longest_s / 2) if ended else longest_s
        open_shards = {path.name.split(".")[1] for path in (soaked / "corpus" / "images").glob(".*.tmp")}
        assert len(open_shards - after) <= ranks, "at most one shard of each group is made again"
    run(2, *given(soaked)).succeeded()
    assert contents(soaked / "corpus") == contents(quiet / "corpus")
