"""Separate jobs on one output, with claims: each shard once, the bytes of a job alone, and nothing lost with one that dies."""

import json
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hybridiff.corpus.lock import RunLock

from hybridiff.corpus import Corpus
from tests.dist.processes import descendants, kill, run, start

SHARDS = 6


def arguments(folder: Path, url: Path, *more: str) -> list[str]:
    table = folder / "prompts.jsonl"
    rows = ({"prompt": f"a small red circle number {i}"} for i in range(2 * SHARDS))
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {
        "data.prompts": table,
        "data.batch_size": 2,
        "sampling.steps": 4,
        "model.path": "shapes-xl",
        "output.url": url,
        "output.shard_size": 2,
        "parallel.group_size": 2,
        "trainer.accelerator": "cpu",
        "trainer.logger": "false",
    }
    return ["jobs/generate.py", *(f"--{name}={value}" for name, value in given.items()), *more]


def contents(url: Path) -> dict[str, bytes]:
    """Files of the corpus that must not differ from run to run."""
    found = {p.relative_to(url).as_posix(): p.read_bytes() for p in sorted(url.rglob("*")) if p.is_file()}
    return {name: data for name, data in found.items() if not name.startswith("stats/") and name != "run.json"}


def draws(pid: int, url: Path) -> bool:
    """Whether a process, or one that it has started, has claimed a shard that is not committed."""
    for path in url.glob("claims/*.json"):
        with suppress(OSError, ValueError):  # let go meanwhile
            owner = int(json.loads(path.read_text())["owner"].split("-")[-2])
            if owner in [pid, *descendants(pid)] and not (url / "commits" / f"{path.name.split('.')[0]}.json").exists():
                return True
    return False


@pytest.mark.timeout(300)
def test_a_signal_lets_claims_go_and_a_run_without_claims_is_refused_until_then(tmp_path: Path) -> None:
    claimed = arguments(tmp_path, tmp_path / "corpus", "--data.assignment=claims", "--parallel.group_size=1")
    static = [*claimed, "--data.assignment=static"]
    job = start(1, *claimed)
    try:
        deadline = time.monotonic() + 100
        while not list((tmp_path / "corpus").glob("images/.*.tmp")):
            assert time.monotonic() < deadline and job.poll() is None, job.communicate()[0]
            time.sleep(0.01)
        job.send_signal(signal.SIGSTOP)
        refused = run(1, *static)
        job.send_signal(signal.SIGTERM)
        job.send_signal(signal.SIGCONT)
        output, _ = job.communicate(timeout=100)
    finally:
        kill(job)
    assert refused.code == 2 and "with claims; allowed meanwhile: --data.assignment=claims" in refused.output
    assert job.returncode == 85, output
    assert "stopped by SIGTERM" in output and list((tmp_path / "corpus").glob("claims/*")) == []
    run(1, *static).succeeded()


@pytest.mark.timeout(300)
def test_a_run_without_claims_that_takes_the_output_by_force_stops_those_with_claims(tmp_path: Path) -> None:
    more = ("--data.assignment=claims", "--parallel.group_size=1", "--data.lease_s=3", "--sampling.steps=900")
    job = start(1, *arguments(tmp_path, tmp_path / "corpus", *more))
    try:
        deadline = time.monotonic() + 100
        while not list((tmp_path / "corpus").glob("images/.*.tmp")):
            assert time.monotonic() < deadline and job.poll() is None, job.communicate()[0]
            time.sleep(0.01)
        with RunLock(Corpus(str(tmp_path / "corpus")), force=True) as lock:
            output, _ = job.communicate(timeout=150)
            lock.beat()
            assert not lock.lost
    finally:
        kill(job)
    assert job.returncode == 85 and "another run, which has taken the output over" in output, output
    assert list((tmp_path / "corpus").glob("claims/*")) == []


@pytest.mark.timeout(400)
def test_two_jobs_share_one_corpus_and_the_living_finish_what_the_dead_began(tmp_path: Path) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    run(2, *arguments(tmp_path, alone)).succeeded()
    claimed = arguments(tmp_path, shared, "--data.assignment=claims", "--data.lease_s=6")
    jobs = [start(2, *claimed) for _ in range(2)]
    try:
        deadline = time.monotonic() + 200
        drawing: list[subprocess.Popen[str]] = []
        while not drawing:
            begun = list(shared.glob("commits/*.json"))  # models are loaded by then
            drawing = [job for job in jobs if begun and draws(job.pid, shared)]
            assert time.monotonic() < deadline and jobs[0].poll() is None, jobs[0].communicate()[0]
            time.sleep(0.01)
        kill(drawing[0])
        assert list(shared.glob("claims/*.json")), "what it had begun"
        (survivor,) = (job for job in jobs if job is not drawing[0])
        output, _ = survivor.communicate(timeout=200)
    finally:
        for job in jobs:
            kill(job)
            job.communicate()
    assert survivor.returncode == 0, output
    run(2, *claimed).succeeded()  # finds nothing to do
    left = {name: data for name, data in contents(shared).items() if not name.startswith("claims/")}
    assert left == contents(alone)
