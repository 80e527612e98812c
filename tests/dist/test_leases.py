"""Separate commands on one output: each shard once, the bytes of a command alone, and nothing lost with one that is killed."""

import json
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.dist.processes import descendants, finish, kill, run, start
from tests.dist.test_signals import until

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
    return {name: data for name, data in found.items() if not name.startswith(("stats/", "leases/")) and name != "run.json"}


def holds(pid: int, url: Path) -> bool:
    """Whether a process, or one that it has started, has the lease on a shard that is not committed."""
    for path in url.glob("leases/*.json"):
        with suppress(OSError, ValueError):  # released meanwhile
            owner = json.loads(path.read_text())["owner"]["pid"]
            if owner in [pid, *descendants(pid)] and not (url / "commits" / f"{path.name.split('.')[0]}.json").exists():
                return True
    return False


def opened(url: Path) -> list[Path]:
    return list(url.glob("images/.*.tmp"))


@pytest.mark.timeout(400)
def test_two_identical_commands_of_the_same_second_make_one_whole_corpus_together(tmp_path: Path) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    run(1, *arguments(tmp_path, alone, "--parallel.group_size=1")).succeeded()
    given = arguments(tmp_path, shared, "--parallel.group_size=1")
    jobs = [start(1, *given) for _ in range(2)]
    try:
        outputs = [finish(job, 200) for job in jobs]
    finally:
        for job in jobs:
            kill(job)
    assert [job.returncode for job in jobs] == [0, 0], outputs
    assert any("contact sheet:" in output for output in outputs) and (shared / "README.md").exists()
    assert contents(shared) == contents(alone) and list((shared / "leases").iterdir()) == []
    leaders = {json.loads(path.read_text())["group"]["leader"] for path in shared.glob("stats/*.json")}
    assert {leader.rpartition("-")[2] for leader in leaders} == {str(job.pid) for job in jobs}, "both had a part in it"


@pytest.mark.timeout(300)
def test_a_signal_releases_leases_and_another_command_goes_on_at_once(tmp_path: Path) -> None:
    url = tmp_path / "corpus"
    given = arguments(tmp_path, url, "--parallel.group_size=1")
    job = start(1, *given)
    try:
        until(job, lambda: opened(url))
        job.send_signal(signal.SIGTERM)
        output = finish(job)
    finally:
        kill(job)
    assert job.returncode == 85, output
    assert "stopped by SIGTERM" in output and list(url.glob("leases/*")) == []
    run(1, *given).succeeded()


@pytest.mark.timeout(400)
def test_a_command_that_stalls_for_longer_than_its_lease_gives_way_when_it_resumes(tmp_path: Path) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    run(1, *arguments(tmp_path, alone, "--parallel.group_size=1")).succeeded()
    given = arguments(tmp_path, shared, "--parallel.group_size=1", "--data.lease_s=2")
    job = start(1, *given)
    try:
        until(job, lambda: opened(shared))
        job.send_signal(signal.SIGSTOP)
        other = run(1, *given).succeeded()
        assert "contact sheet:" in other.output
        before = contents(shared)
        job.send_signal(signal.SIGCONT)
        output = finish(job)
    finally:
        kill(job)
    assert job.returncode == 0, output
    assert contents(shared) == before == contents(alone)


@pytest.mark.timeout(400)
def test_two_jobs_share_one_corpus_and_the_living_finish_what_the_dead_began(tmp_path: Path) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    run(2, *arguments(tmp_path, alone)).succeeded()
    given = arguments(tmp_path, shared)
    jobs = [start(2, *given) for _ in range(2)]
    try:
        deadline = time.monotonic() + 200
        at_work: list[subprocess.Popen[str]] = []
        while not at_work:
            begun = list(shared.glob("commits/*.json"))  # models are loaded by then
            at_work = [job for job in jobs if begun and holds(job.pid, shared)]
            assert time.monotonic() < deadline and jobs[0].poll() is None, jobs[0].communicate()[0]
            time.sleep(0.01)
        kill(at_work[0])
        assert list(shared.glob("leases/*.json")), "what it had begun"
        (survivor,) = (job for job in jobs if job is not at_work[0])
        output = finish(survivor, 200)
    finally:
        for job in jobs:
            kill(job)
            job.communicate()
    assert survivor.returncode == 0, output
    run(2, *given).succeeded()  # finds nothing to do
    assert contents(shared) == contents(alone)
