"""A storm: kills, stops, signals, clock jumps, storage faults and full disks at random; the dataset becomes whole all the same.

HYBRIDIFF_STORM is the number of events (12 by default, 200 for a long storm), HYBRIDIFF_STORM_SEED chooses them. Two runs share
each dataset, so that what one leaves another takes over; what is committed stays as it is, and at the end the bytes are those of
a dataset that no event has met.
"""

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from hybridiff.corpus import Corpus, verify
from tests.dist.preloaded import Faults, Preloaded, Run
from tests.dist.processes import descendants
from tests.dist.test_generate import contents
from tests.dist.test_signals import arguments, committed
from tests.dist.test_soak import SHARDS, settle

EVENTS = int(os.environ.get("HYBRIDIFF_STORM", "12"))
SEED = int(os.environ.get("HYBRIDIFF_STORM_SEED", "0"))
KINDS = ("kill", "stop", "terminate", "clock", "storage", "disk")
CODES = {0, 1, 85, -signal.SIGKILL, -signal.SIGTERM}  # of launchers, whose ranks may have been killed
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180 + 40 * EVENTS)]


@pytest.fixture(scope="module")
def launchers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Preloaded]]:
    outputs = [tmp_path_factory.mktemp("storm") / f"{number}.txt" for number in range(2)]
    found = [Preloaded(output) for output in outputs]
    yield found
    for launcher, output in zip(found, outputs, strict=True):
        launcher.close()
        print(output.read_text())
        assert "Traceback" not in output.read_text(), "each ending is one line"


def given(directory: Path) -> list[str]:
    more = ("--data.batch_size=1", "--output.shard_size=3", "--sampling.steps=4", "--data.lease_s=2", "--output.grace_s=1")
    return arguments(directory, 1, *more)[1:]


def faults(kind: str, chance: random.Random) -> Faults:
    """What is wrong with a process from its start on."""
    clock_s = chance.choice((-86_400.0, -5.0, 5.0, 86_400.0)) if kind == "clock" else 0.0
    if kind == "disk":
        return Faults(largest_file=chance.choice((200, 2_000, 8_000)))
    return Faults(clock_s, chance.choice((0.02, 0.1, 0.5)) if kind == "storage" else 0.0, seed=chance.randrange(1 << 30))


def strike(kind: str, run: Run, chance: random.Random) -> None:
    """Meets a run with an event, at some moment."""
    time.sleep(chance.uniform(0.2, 4.0))
    ranks = descendants(run.pid)
    number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "terminate": signal.SIGTERM}.get(kind)
    for pid in ranks if number else []:
        with suppress(ProcessLookupError):
            os.kill(pid, number or 0)
    if kind == "stop":
        time.sleep(chance.uniform(0.5, 6.0))  # longer than a lease at times: another run takes its shards over
        for pid in ranks:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def markers(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (directory / "corpus/commits").glob("*.json")}


def test_a_storm_costs_no_row_and_commits_nothing_twice(tmp_path: Path, launchers: list[Preloaded]) -> None:
    quiet = tmp_path / "quiet"
    quiet.mkdir()
    assert launchers[0].start(1, *given(quiet)).wait(120) == 0
    chance = random.Random(SEED)
    met: list[str] = []
    corpora = 0
    while len(met) < EVENTS:
        directory = tmp_path / f"storm{corpora}"
        directory.mkdir()
        corpora += 1
        while len(committed(directory)) < SHARDS and len(met) < EVENTS:
            kinds = [
                KINDS[(len(met) + number) % len(KINDS)] if len(met) < len(KINDS) else chance.choice(KINDS) for number in (0, 1)
            ]
            done = markers(directory)
            runs = [
                launcher.start(1, *given(directory), faults=faults(kind, chance))
                for launcher, kind in zip(launchers, kinds, strict=True)
            ]
            for run, kind in zip(runs, kinds, strict=True):
                strike(kind, run, chance)
            for run in runs:
                settle(run, descendants(run.pid))
                assert run.wait(0) in CODES, (kinds, met)
            after = markers(directory)
            assert {name: after[name] for name in done} == done, f"{kinds}: a committed shard was made again"
            met += kinds
        whole(launchers[0], directory, quiet)
    print(json.dumps({"events": met, "datasets": corpora}))


def whole(launcher: Preloaded, directory: Path, quiet: Path) -> None:
    """Undisturbed at last, the dataset is whole, with the bytes of one that always was."""
    deadline = time.monotonic() + 120
    while len(committed(directory)) < SHARDS and time.monotonic() < deadline:  # leases of a clock a day ahead are waited out
        assert launcher.start(1, *given(directory)).wait(120) in (0, 1)
    assert launcher.start(1, *given(directory)).wait(120) == 0
    assert contents(directory / "corpus") == contents(quiet / "corpus")
    report = verify(Corpus(str(directory / "corpus")), 1)
    assert report.whole, report.problems
