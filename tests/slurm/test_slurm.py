"""The batch scripts on a real SLURM of two nodes: whatever happens to a job, its corpus has the bytes of an undisturbed one."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hybridiff import cli
from hybridiff.cli import status
from tests.dist.processes import ROOT, run
from tests.services.slurm import Slurm
from tests.slurm.jobs import Jobs

ROWS = 32  # two of which make a shard
JOB, ARRAY = "slurm/generate.sbatch", "slurm/array.sbatch"
ALONE = ("--nodes=1", "--gpus-per-node=1", "--exclusive=user", JOB)  # one rank
PAIR = ("--nodes=1", "--gpus-per-node=2", "--ntasks-per-node=2", "--exclusive=user", JOB)
APART = ("--nodes=2", "--gpus-per-node=1", "--exclusive=user", JOB)  # one rank on each of two nodes
TASKS = ("--array=0-3", "--gpus-per-node=1", "--exclusive=user")
SEED = int(os.environ.get("HYBRIDIFF_SOAK_SEED", "0"))  # of the moments at which jobs are disturbed
pytestmark = pytest.mark.timeout(900)

Corpora = Callable[[int], dict[str, bytes]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("corpora")
    prompts = [{"prompt": f"a small red circle on a blue background, number {index}"} for index in range(ROWS)]
    (path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    return path


@pytest.fixture(scope="module")
def undisturbed(slurm: Slurm, folder: Path) -> Corpora:
    """The bytes of the corpus that a group makes locally, by group size; made once."""
    made: dict[int, dict[str, bytes]] = {}

    def bytes_of(group_size: int) -> dict[str, bytes]:
        if group_size not in made:
            url = folder / f"local-{group_size}"
            run(group_size, "jobs/generate.py", *arguments(folder, url, group_size), timeout_s=400).succeeded()
            made[group_size] = contents(url)
        return made[group_size]

    return bytes_of


@pytest.fixture(scope="module")
def limited(slurm: Slurm, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    """A pair of torchrun on node1 whose time limit is near, again and again. It mostly waits, as SLURM looks at limits twice a
    minute: other tests run beside it."""
    jobs = Jobs(slurm, tmp_path_factory.mktemp("limited"))
    near = ("--time=1", "--signal=B:USR1@50", "--nodelist=node1")
    try:
        given = arguments(folder, folder / "limit", 2)
        variables = {"LAUNCHER": "torchrun", "MAX_FRUITLESS": "100"}  # however slow the machine is
        jobs.submit_held(*PAIR[:-1], *near, JOB, *given, held_s=10.0, **variables)
        yield jobs
    finally:
        jobs.cancel()


@pytest.fixture
def no_weights(tmp_path: Path) -> str:
    """Option for a model that can be checked, and not loaded."""
    model = tmp_path / "model"
    shutil.copytree(ROOT / "hybridiff/assets/shapes-xl", model, ignore=shutil.ignore_patterns("*.safetensors"))
    return f"--model.path={model}"


def arguments(folder: Path, url: Path, group_size: int) -> list[str]:
    given = {
        "data.prompts": folder / "prompts.jsonl",
        "data.batch_size": 2,
        "data.lease_s": 24,  # shards of others are looked at twelve times in it
        "sampling.steps": 3,
        "model.path": "shapes-xl",
        "output.url": url,
        "output.shard_size": 2,
        "parallel.group_size": group_size,
        "parallel.schedule": "full",
        "trainer.accelerator": "cpu",
        "trainer.logger": "false",
        "trainer.enable_progress_bar": "false",
    }
    return [f"--{name}={value}" for name, value in given.items()]


def contents(url: Path) -> dict[str, bytes]:
    """All files of a corpus that must not differ from run to run; anything left over would show."""
    found = {p.relative_to(url).as_posix(): p.read_bytes() for p in sorted(url.rglob("*")) if p.is_file()}
    return {name: data for name, data in found.items() if not name.startswith(("stats/", "leases/")) and name != "run.json"}


def commits(url: Path) -> int:
    return len(list(url.glob("commits/*.json")))


def same(url: Path, expected: dict[str, bytes]) -> None:
    found = contents(url)
    assert sorted(found) == sorted(expected)
    assert [name for name in found if found[name] != expected[name]] == []


def test_two_nodes_of_two_ranks_make_the_bytes_of_a_local_pair(jobs: Jobs, folder: Path, undisturbed: Corpora) -> None:
    url = folder / "two-nodes"
    job = jobs.submit("--gpus-per-node=2", JOB, *arguments(folder, url, 2))
    jobs.completed(job)
    same(url, undisturbed(2))
    log = jobs.log(job)
    assert "images:        32" in log and "nodes:     node[1-2], 2 ranks each" in log and "torch 2" in log
    assert len(list((jobs.folder / "ranks").rglob("node*.log"))) == 4


@pytest.mark.usefixtures("limited")
def test_requeue_a_failing_node_and_scancel_lose_and_double_nothing(jobs: Jobs, folder: Path, undisturbed: Corpora) -> None:
    """The first and the last at moments that the seed chooses: while it loads or while it generates."""
    url, chance = folder / "disturbed", random.Random(SEED)
    job = jobs.submit_held("--nodelist=node2", *ALONE, *arguments(folder, url, 1))
    jobs.until(lambda: jobs.field(job, "JobState") == "RUNNING", "the first run")
    time.sleep(chance.uniform(0, 8))
    jobs.slurm.do("scontrol", "requeue", job)
    _until_more(jobs, url, job, restarts=1)
    before = jobs.restarts(job)
    jobs.slurm.kill_node("node2")
    expected = undisturbed(1)  # meanwhile
    jobs.until(lambda: jobs.field(job, "JobState") == "PENDING", "SLURM to give the node up")
    jobs.slurm.start_node("node2")
    _until_more(jobs, url, job, restarts=before + 1)
    time.sleep(chance.uniform(0, 3))
    jobs.slurm.do("scancel", job)
    assert jobs.ended(job) == "CANCELLED"
    jobs.slurm.wait_for_nodes()
    assert jobs.field(job, "JobState") == "CANCELLED" and commits(url) < ROWS // 2
    jobs.completed(jobs.submit("--nodelist=node1", *ALONE, *arguments(folder, url, 1)))  # from where nobody sees what it killed
    same(url, expected)


def _until_more(jobs: Jobs, url: Path, job: str, restarts: int) -> None:
    jobs.until(lambda: jobs.restarts(job) >= restarts and jobs.field(job, "JobState") == "RUNNING", f"run {restarts + 1}")
    before = commits(url)
    jobs.until(lambda: commits(url) > before, f"a shard of run {restarts + 1}")


def test_the_time_limit_stops_a_pair_of_torchrun_twice_and_a_later_run_completes_it(
    limited: Jobs, folder: Path, undisturbed: Corpora
) -> None:
    (job,) = limited.numbers
    stopped = "stopped by SIGUSR1; what is committed stays"
    limits = [1]

    def stopped_twice() -> bool:
        """Whether it was requeued twice, once while it generated; where loading takes too long for that, runs get more time."""
        restarts = limited.restarts(job)
        if (minutes := min(3, 1 + restarts // 2)) != limits[-1]:
            limited.slurm.do("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
            limits.append(minutes)
        return restarts >= 2 and limited.reported(stopped)

    limited.until(stopped_twice, "two requeues, once while it generates")
    limited.slurm.do("scontrol", "update", f"JobId={job}", "TimeLimit=30")
    limited.release()
    limited.completed(job)
    log, stops = limited.log(job), limited.restarts(job)
    assert [log.count(f"=== exit code {code}") for code in (85, 0)] == [stops, 1] and log.count("to be requeued, ") == stops
    assert stopped in log
    same(folder / "limit", undisturbed(2))


@pytest.mark.parametrize("launcher", ["python", "torchrun"])
def test_srun_without_a_batch_script(jobs: Jobs, folder: Path, undisturbed: Corpora, launcher: str) -> None:
    """The two commands of docs/how-to/slurm.md, with nodes of two."""
    url = folder / f"direct-{launcher}"
    command = ["srun", "--job-name=direct", "--nodes=2", "--time=10", "--kill-on-bad-exit=1"]
    if launcher == "python":
        command += ["--ntasks-per-node=2", sys.executable, "jobs/generate.py", *arguments(folder, url, 2)]
    else:
        head = "$(scontrol show hostnames | head -n 1):$((20000 + SLURM_JOB_ID % 10000))"
        command += ["--ntasks-per-node=1", "bash", "-c"]
        command += [f'torchrun --nnodes=2 --nproc-per-node=2 --rdzv-backend=c10d --rdzv-endpoint={head} "$@"', "-"]
        command += ["jobs/generate.py", *arguments(folder, url, 2)]
    path = {"PATH": f"{Path(sys.executable).parent}:{jobs.slurm.environment['PATH']}"}
    environment = jobs.slurm.environment | jobs.environment | path
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    same(url, undisturbed(2))


def test_the_tasks_of_an_array_share_a_corpus_and_take_over_from_one_that_is_cancelled_or_requeued(
    jobs: Jobs, folder: Path, undisturbed: Corpora
) -> None:
    url = folder / "array"
    job = jobs.submit_held(*TASKS, ARRAY, *arguments(folder, url, 1))
    jobs.until(lambda: commits(url) >= 4, "the first shards")
    jobs.slurm.do("scancel", f"{job}_1")
    jobs.slurm.do("scontrol", "requeue", f"{job}_2")
    jobs.release()
    for task in (0, 2, 3):
        jobs.completed(f"{job}_{task}")
    assert jobs.ended(f"{job}_1") == "CANCELLED"
    assert [jobs.restarts(f"{job}_{task}") > 0 for task in (0, 2, 3)] == [False, True, False]
    same(url, undisturbed(1))


def test_a_higher_partition_has_a_node_of_two_for_a_while(jobs: Jobs, folder: Path, undisturbed: Corpora) -> None:
    url = folder / "preempted"
    job = jobs.submit_held(*APART, *arguments(folder, url, 1), held_s=4.0)
    jobs.until(lambda: commits(url) >= 1, "the first shard")
    other = jobs.submit("--partition=high", "--nodelist=node2", "--exclusive", "--wrap=sleep 1")
    jobs.completed(other)
    jobs.release()
    jobs.completed(job)
    assert jobs.restarts(job) == 1
    log = jobs.log(job)
    assert log.count("=== exit code 85") == 1 and log.count("stopped by SIGTERM; what is committed stays") == 2
    same(url, undisturbed(1))


def test_one_rank_that_raises_ends_all_of_them_and_its_message_is_in_the_log(jobs: Jobs, folder: Path, tmp_path: Path) -> None:
    job = jobs.submit_held(*APART, *arguments(folder, tmp_path / "corpus", 1), RAISES="1", MAX_REQUEUES="0")
    jobs.until(lambda: jobs.reported("rank 1 is out of luck"), "the rank to raise")
    jobs.until(lambda: _running(tmp_path / "corpus") == [], "the end of all ranks")
    assert len(list((tmp_path / "corpus/commits").glob("*.json"))) < ROWS // 2, "rank 0, which is held, did the rest"
    assert jobs.ended(job) == "FAILED" and jobs.field(job, "ExitCode") == "1:0"
    assert "RuntimeError: rank 1 is out of luck" in jobs.log(job)
    assert jobs.restarts(job) == 0


def _running(url: Path) -> list[str]:
    """Processes that were given this output."""
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.parent.name != str(os.getpid())]
    return [line.decode() for line in lines if f"--output.url={url}".encode() in line]


def test_wrong_setups_are_refused_before_a_model_is_loaded(jobs: Jobs, folder: Path, tmp_path: Path, no_weights: str) -> None:
    plain = tmp_path / "plain.sbatch"
    plain.write_text(f'#!/bin/sh\nexec {sys.executable} jobs/generate.py "$@"\n')
    given = [*arguments(folder, tmp_path / "corpus", 2), no_weights]
    refused = {
        jobs.submit(*APART, *given): "parallel.group_size is 2; allowed: a divisor of the 1 ranks of a node",
        jobs.submit(*PAIR, *given, "--trainer.devices=4"): "trainer.devices is '?4'?; allowed: auto, or 2 as",
        jobs.submit("--ntasks=2", str(plain), *given): "the SLURM job has 2 tasks, but python was started without srun",
    }
    for job, message in refused.items():
        assert jobs.ended(job) == "FAILED" and jobs.field(job, "ExitCode") == "2:0"
        lines = [line for line in jobs.log(job).splitlines() if line.startswith("generate: error: ")]
        assert lines and all(re.search(message, line) for line in lines)
    assert not (tmp_path / "corpus").exists()


def test_submit_plans_and_submits_and_status_watches(
    jobs: Jobs,
    folder: Path,
    tmp_path: Path,
    undisturbed: Corpora,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Outside a checkout: the scripts are found, and the job runs where it was submitted."""
    url = folder / "submitted"
    given = [*arguments(folder, url, 1), "--time=20", "--nodes=2", "--array", "--sbatch=--exclusive=user"]
    monkeypatch.setenv("SLURM_CONF", jobs.slurm.environment["SLURM_CONF"])
    monkeypatch.setattr(status, "LOOK_S", 1.0)
    assert cli.main(["status", str(url)]) == 2
    assert "no job has started on it yet" in capsys.readouterr().err
    environment = jobs.slurm.environment | jobs.environment | jobs.held() | {"SBATCH_OUTPUT": f"{jobs.folder}/%j.out"}
    command = [sys.executable, "-m", "hybridiff", "submit", "--submit", *given]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    job = jobs.adopt(done.stdout.strip())
    assert "left:     32 images in 16 of 16 shards" in done.stderr and "walltime: 00:20:00" in done.stderr
    jobs.until(lambda: commits(url) >= 1, "the first shard")
    assert cli.main(["status", str(url)]) == 0
    shown = capsys.readouterr().out
    assert re.search(rf"held: +\d{{5}} by process \d+ of job {job}_[01] on node[12], since ", shown), shown
    jobs.release()
    assert cli.main(["status", str(url), "--watch"]) == 0
    first, *_, whole, last = capsys.readouterr().out.splitlines()
    assert re.search(r"[1-9]\d* of 16 shards, \d+ of 32 images, 0 failed rows, [\d.]+ images/s, .* left; held: \d shards", first)
    assert "16 of 16 shards, 32 of 32 images, 0 failed rows" in whole and json.loads(last)["complete"] is True
    for task in range(2):
        jobs.completed(f"{job}_{task}")
    same(url, undisturbed(1))
