"""SIGKILL at random moments, again and again, with other numbers of ranks each time: the corpus is as if nothing had been.

HYBRIDIFF_SOAK is the number of kills (30 by default), HYBRIDIFF_SOAK_SEED chooses the moments. Every tenth run is torchrun's; the
others are forked from a process that has the libraries loaded, as loading them takes longer than the run. Corpora are made by
single ranks and by pairs in turn.
"""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.dist.preloaded import Preloaded, Run
from tests.dist.processes import descendants, start
from tests.dist.test_generate import contents
from tests.dist.test_signals import arguments, committed

KILLS = int(os.environ.get("HYBRIDIFF_SOAK", "30"))
SEED = int(os.environ.get("HYBRIDIFF_SOAK_SEED", "0"))
SHARDS, BATCHES = 8, 3  # in all, and of each
RUN_S = 60.0  # that is allowed for a rank to end after its peer was killed
LONGEST_S = {False: 4.0, True: 1.5}  # from the start, or from the first shard's, until a kill
GENERATING = 0.75  # of the kills come while something is generated
Process = Run | subprocess.Popen[str]


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Preloaded]:
    output = tmp_path_factory.mktemp("soak") / "output.txt"
    launcher = Preloaded(output)
    yield launcher
    launcher.close()
    print(output.read_text())


def given(directory: Path, group_size: int) -> list[str]:
    more = ("--data.batch_size=1", f"--output.shard_size={BATCHES}", "--sampling.steps=4", "--parallel.timeout_s=20")
    return arguments(directory, group_size, *more)


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


@dataclass
class Soaked:
    """A corpus that runs are killed on.

    Args:
        directory: directory in which it is generated.
        group_size: Ranks that make an image together.
    """

    directory: Path
    group_size: int

    @property
    def whole(self) -> bool:
        return len(committed(self.directory)) == SHARDS

    def written(self) -> dict[str, int]:
        """When the files of committed shards were written, in nanoseconds."""
        folders = {"images": "tar", "metadata": "parquet", "commits": "json"}
        corpus, done = self.directory / "corpus", committed(self.directory)
        files = [corpus / folder / f"{shard}.{ending}" for shard in done for folder, ending in folders.items()]
        return {str(file): file.stat().st_mtime_ns for file in files}

    def opened(self) -> set[str]:
        """Files of shards that are being made, or were when a run was killed."""
        return {path.name for path in (self.directory / "corpus" / "images").glob(".*.tmp")}

    def begun(self, opened: set[str], done: dict[str, int]) -> bool:
        """Whether a run has generated anything that was not there before it."""
        return bool(self.opened() - opened) or len(committed(self.directory)) > len(done) // 3

    def disturb(self, process: Process, victim: str, drawing: bool, chance: random.Random) -> tuple[bool, bool]:
        """Kills the named processes of a run, perhaps only once it generates; whether it had ended, and had generated."""
        opened, done = self.opened(), self.written()
        deadline = time.monotonic() + RUN_S
        while drawing and process.poll() is None and not self.begun(opened, done) and time.monotonic() < deadline:
            time.sleep(0.01)
        with suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(0, LONGEST_S[drawing]))
        generated = self.begun(opened, done)
        ended = process.poll() is not None
        ranks = descendants(process.pid)
        strike(process, victim, chance)
        settle(process, ranks)
        after = self.written()
        assert all(after[file] == moment for file, moment in done.items()), "a committed shard is never generated again"
        left = {name.split(".")[1] for name in self.opened() - opened} - set(committed(self.directory))
        groups = max(1, len(ranks) // self.group_size)
        assert len(left) <= groups, f"{left} were open, in {groups} groups: at most one shard of each is generated again"
        return ended, generated and not ended


@pytest.mark.timeout(120 + 30 * KILLS)
def test_killed_at_random_moments_and_run_again(tmp_path: Path, preloaded: Preloaded) -> None:
    quiet = {size: tmp_path / f"quiet{size}" for size in (1, 2)}
    for size, directory in quiet.items():
        directory.mkdir()
        assert preloaded.start(size, *given(directory, size)[1:]).wait(120) == 0
    chance = random.Random(SEED)
    soaked = Soaked(quiet[1], 1)
    kills = hits = corpora = 0
    for turn in range(3 * KILLS):
        if soaked.whole:  # nothing is left to do
            size = corpora % 2 + 1
            soaked = Soaked(tmp_path / f"soaked{corpora}", size)
            soaked.directory.mkdir()
            corpora += 1
        real = turn % 10 == 9
        ranks = chance.choice((1, 2, 3) if soaked.group_size == 1 else (2, 4))
        victim = chance.choice(("all ranks", "one rank", "launcher"))
        arguments = given(soaked.directory, soaked.group_size)
        process = start(2, *arguments) if real else preloaded.start(ranks, *arguments[1:])
        ended, hit = soaked.disturb(process, "launcher" if real else victim, chance.random() < GENERATING, chance)
        kills, hits = kills + (not ended), hits + hit
        if soaked.whole or kills >= KILLS:
            run_again(preloaded, soaked, 2, quiet[soaked.group_size])
        if kills >= KILLS:
            break
    assert kills >= KILLS and hits >= KILLS // 2 and corpora >= 2, (kills, hits, corpora)


def run_again(preloaded: Preloaded, soaked: Soaked, ranks: int, quiet: Path) -> None:
    """Undisturbed at last: the corpus has the bytes of one that always was."""
    assert preloaded.start(ranks, *given(soaked.directory, soaked.group_size)[1:]).wait(120) == 0
    assert contents(soaked.directory / "corpus") == contents(quiet / "corpus")
