"""A storm: kills, stops, signals, clock jumps, storage faults and full disks at random; the dataset becomes whole all the same.

HYBRIDIFF_STORM is the number of events (12 by default, 200 for a long storm), half of them on local disk and half on S3 behind a
proxy that breaks requests; HYBRIDIFF_STORM_SEED chooses them. Two runs share each dataset, so that what one leaves another takes
over; what is committed stays as it is, and at the end the bytes are those of a dataset that no event has met.
"""

import json
import os
import random
import signal
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from hybridiff.corpus import Corpus, verify
from hybridiff.storage.folder import Folder
from tests.dist.preloaded import Faults, Preloaded, Run
from tests.dist.processes import descendants
from tests.dist.test_s3_job import objects
from tests.dist.test_signals import arguments
from tests.dist.test_soak import SHARDS, settle
from tests.services.proxy import FaultyProxy
from tests.services.swift import CREDENTIALS, Swift

EVENTS = int(os.environ.get("HYBRIDIFF_STORM", "12"))
SEED = int(os.environ.get("HYBRIDIFF_STORM_SEED", "0"))
OF_PROCESSES = ("kill", "stop", "terminate", "clock", "storage")
BROKEN: tuple[int | str, ...] = (500, 503, "slow", "cut", "lost", "torn", "silent")  # requests, see FaultyProxy
CODES = {0, 1, 85, 128 + signal.SIGKILL, 128 + signal.SIGTERM}
S3_BUDGET_S = 5.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300 + 40 * EVENTS)]


@dataclass(frozen=True)
class Place:
    """Where datasets of a storm lie.

    Args:
        root: local directory or url of S3.
        kinds: events that the place may meet, the first of them one after another.
        lease_s: length of its leases, in seconds.
        environment: variables by which runs find it.
        server: the S3 server; None of local disk.
        proxy: proxy through which runs reach that server.
    """

    root: str
    kinds: Sequence[str]
    lease_s: float
    environment: dict[str, str]
    server: Swift | None = None
    proxy: FaultyProxy | None = None

    def corpus(self, name: str) -> Corpus:
        return Corpus(f"{self.root}/{name}")

    @property
    def calm(self) -> Faults:
        """What all runs have, also undisturbed ones."""
        return Faults(s3_budget_s=S3_BUDGET_S if self.proxy else 0.0)

    def faults(self, kind: str, chance: random.Random) -> Faults:
        """What is wrong with a run from its start on; on S3 requests break meanwhile."""
        if kind == "clock":
            return replace(self.calm, clock_s=chance.choice((-86_400.0, -5.0, 5.0, 86_400.0)))
        if kind == "disk":
            return replace(self.calm, largest_file=chance.choice((200, 2_000, 8_000)))
        if kind == "storage" and self.proxy is not None:
            self.proxy.method = chance.choice(("", "GET", "PUT", "HEAD"))
            self.proxy.faults = chance.choices(BROKEN, k=chance.choice((3, 10, 40)))
        failing = chance.choice((0.02, 0.1, 0.5)) if kind == "storage" and self.proxy is None else 0.0
        return replace(self.calm, storage=failing, seed=chance.randrange(1 << 30))

    def strike(self, kind: str, run: Run, chance: random.Random) -> None:
        """Meets a run with an event, at some moment."""
        time.sleep(chance.uniform(0.2, 4.0))
        ranks = descendants(run.pid)
        number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "terminate": signal.SIGTERM}.get(kind)
        for pid in ranks if number else []:
            with suppress(ProcessLookupError):
                os.kill(pid, number or 0)
        if kind in ("stop", "server"):
            if kind == "server" and self.server is not None:
                self.server.kill()
            time.sleep(chance.uniform(0.5, 6.0))  # longer than a lease at times: another run takes its shards over
            for pid in ranks if kind == "stop" else []:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            if self.server is not None:
                self.server.start()


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    if request.param == "local":
        yield Place(str(tmp_path), (*OF_PROCESSES, "disk"), 2.0, {})
        return
    swift: Swift = request.getfixturevalue("swift")
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": swift.url}.items():  # for the test itself, past the proxy
        monkeypatch.setenv(name, value)
    bucket = f"storm-{uuid.uuid4().hex[:8]}"
    Corpus(f"s3://{bucket}/any").fs.mkdir(bucket)
    with FaultyProxy(swift.url) as proxy:
        lease_s = S3_BUDGET_S + 35.0
        environment = {**CREDENTIALS, "AWS_ENDPOINT_URL": proxy.url}
        yield Place(f"s3://{bucket}", (*OF_PROCESSES, "server"), lease_s, environment, swift, proxy)


@pytest.fixture
def launchers(place: Place, tmp_path: Path) -> Iterator[list[Preloaded]]:
    outputs = [tmp_path / f"{number}.txt" for number in range(2)]
    found = [Preloaded(output, place.environment) for output in outputs]
    yield found
    for launcher, output in zip(found, outputs, strict=True):
        launcher.close()
        print(output.read_text())
        assert "Traceback" not in output.read_text(), "each ending is one line"


def given(prompts: Path, url: str, lease_s: float) -> list[str]:
    more = ("--data.batch_size=1", "--output.shard_size=3", "--sampling.steps=4", "--output.grace_s=1")
    options = [one for one in arguments(prompts, 1, *more)[1:] if not one.startswith("--output.url")]
    return [*options, f"--output.url={url}", f"--data.lease_s={lease_s}"]


def markers(corpus: Folder) -> dict[str, bytes]:
    corpus.fs.invalidate_cache()  # others have written since it was listed
    return {name: corpus.read(f"commits/{name}") for name in corpus.names("commits") if not name.startswith(".")}


def test_a_storm_costs_no_row_and_commits_nothing_twice(tmp_path: Path, place: Place, launchers: list[Preloaded]) -> None:
    quiet = Corpus(str(tmp_path / "quiet"))
    assert launchers[0].start(1, *given(tmp_path, quiet.url, place.lease_s)).wait(120) == 0
    chance = random.Random(SEED)
    met: list[str] = []
    corpora = 0
    while len(met) < EVENTS // 2:
        corpus = place.corpus(f"storm{corpora}")
        options = given(tmp_path, corpus.url, place.lease_s)
        corpora += 1
        while len(markers(corpus)) < SHARDS and len(met) < EVENTS // 2:
            regular = [*place.kinds[len(met) : len(met) + 2], *chance.choices(place.kinds, k=2)]
            kinds, done = regular[:2], markers(corpus)
            runs = [
                launcher.start(1, *options, faults=place.faults(kind, chance))
                for launcher, kind in zip(launchers, kinds, strict=True)
            ]
            for run, kind in zip(runs, kinds, strict=True):
                place.strike(kind, run, chance)
            for run in runs:
                settle(run, descendants(run.pid))
                assert run.wait(0) in CODES, (kinds, met)
            if place.proxy is not None:
                place.proxy.faults = []
            after = markers(corpus)
            assert {name: after[name] for name in done} == done, f"{kinds}: a committed shard was made again"
            met += kinds
        whole(launchers[0], place, options, corpus, quiet)
    print(json.dumps({"events": met, "datasets": corpora}))


def whole(launcher: Preloaded, place: Place, options: list[str], corpus: Corpus, quiet: Corpus) -> None:
    """Undisturbed at last, the dataset is whole, with the bytes of one that always was."""
    deadline = time.monotonic() + 120
    while len(markers(corpus)) < SHARDS and time.monotonic() < deadline:  # leases of a clock a day ahead are waited out
        assert launcher.start(1, *options, faults=place.calm).wait(120) in (0, 1)
    assert launcher.start(1, *options, faults=place.calm).wait(120) == 0
    assert objects(corpus) == objects(quiet)
    report = verify(corpus, 1)
    assert report.whole, report.problems
