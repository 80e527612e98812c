"""The call of sbatch to the letter, and what SLURM's queue says of the owner of a lease."""

import difflib
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from hybridiff.cluster.queue import check_secrets, job_ended, queued_jobs, sbatch
from hybridiff.cluster.sizing import Size
from hybridiff.corpus.corpus import Corpus
from hybridiff.errors import ServiceError, UsageError
from hybridiff.storage.owner import Owner

GOLDEN = Path(__file__).parent / "sbatch_commands.txt"
ARGUMENTS = ["--config", "my jobs/mine.yaml", "--sampling.steps=30"]
SCRIPTS = Path("/opt/hybridiff/slurm")


def stored_at(url: str) -> Corpus:
    """A corpus at an address, on storage that is not asked anything."""
    corpus = Corpus(url if "://" not in url else "/runs/mine")
    if "://" in url:
        corpus.url, corpus.fs = url, SimpleNamespace(protocol=url.partition(":")[0])
    return corpus


def commands() -> str:
    """The calls for a node with an idle GPU, for an array with fewer ranks than GPUs, and for CPUs."""
    size = Size(tasks=3, groups=9, estimate_s=None, walltime_s=28800, runs=1)
    idle, array, cpu = stored_at("s3://bucket/runs/mine/"), stored_at("gcs://bucket/mine"), stored_at("/runs/my corpus")
    calls = [
        sbatch(SCRIPTS / "generate.sbatch", size, idle, 7, 6, False, ["--account=me"], ARGUMENTS, "/opt/venv"),
        sbatch(SCRIPTS / "array.sbatch", size, array, 8, 8, True, ["--mem=0", "--constraint=a100|h100"], ARGUMENTS, "/opt/venv"),
        sbatch(SCRIPTS / "generate.sbatch", size, cpu, 0, 4, False, ["--qos=long"], ARGUMENTS),
    ]
    return "".join(f"{call}\n" for call in calls)


def test_the_call_of_sbatch_is_golden() -> None:
    compare(commands())


def compare(text: str) -> None:
    """Fails with the difference and how to accept it, unless the text is the golden one."""
    if os.environ.get("ACCEPT_GOLDEN"):
        GOLDEN.write_text(text)
    golden = GOLDEN.read_text() if GOLDEN.exists() else ""
    diff = "".join(difflib.unified_diff(golden.splitlines(True), text.splitlines(True), GOLDEN.name, "now"))
    accept = "ACCEPT_GOLDEN=1 python -m pytest tests/cluster/test_queue.py"
    if diff:
        pytest.fail(f"the call of sbatch has changed:\n{diff}\nif that is meant: {accept}", pytrace=False)


def test_a_mismatch_shows_the_difference_and_how_to_accept_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCEPT_GOLDEN", raising=False)
    with pytest.raises(pytest.fail.Exception, match=r"(?s)--nodes=3.*--nodes=5.*if that is meant: ACCEPT_GOLDEN=1"):
        compare(commands().replace("--nodes=3", "--nodes=5"))


@pytest.mark.parametrize("given", [["--data.prompts=s3://me:secret@b/p.jsonl"], ["--output.url", "s3://b/c?token=abcdef"]])
def test_secrets_are_no_arguments_of_a_job(given: list[str]) -> None:
    check_secrets(ARGUMENTS)
    with pytest.raises(UsageError, match=r"^(data\.prompts|output\.url) holds a secret, and SLURM shows the arguments"):
        check_secrets([*ARGUMENTS, *given])


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program squeue, to be written."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path / "squeue"


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def owner(job: str | None, cluster: str | None) -> Owner:
    return Owner("me", "node1", "node1", 1, None, job, 0, cluster)


@pytest.mark.parametrize(
    ("answer", "ended"),
    [
        ("echo CANCELLED", True),
        ("echo TIMEOUT; echo COMPLETED", True),
        ("echo COMPLETING", False),  # its processes may still be there
        ("echo RUNNING", False),
        ("echo PENDING", False),  # requeued, and resumes itself
        ("echo NODE_FAIL", False),  # what still runs there is unknown
        ("echo", False),
        ("echo 'Invalid job id specified' >&2; exit 1", False),  # too long ago to be known
    ],
)
def test_a_job_has_ended_when_slurm_says_so(answer: str, ended: bool, squeue: Path) -> None:
    program(squeue, f'[ "$2" = --jobs=7 ] || exit 1\n{answer}')
    here = {"SLURM_JOB_ID": "9", "SLURM_CLUSTER_NAME": "big"}
    assert job_ended(owner("7", "big"), here) is ended
    assert not job_ended(owner("7", "another"), here) and not job_ended(owner("7", "big"), {})
    assert not job_ended(owner("7", None), here) and not job_ended(owner(None, "big"), here)
    assert not job_ended(owner("7", None), {})


def test_without_squeue_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not job_ended(owner("7", "big"), {"SLURM_JOB_ID": "9", "SLURM_CLUSTER_NAME": "big"})
    assert queued_jobs(stored_at("/runs/mine")) is None


def test_jobs_in_the_queue_are_known_by_their_comment(squeue: Path) -> None:
    lines = ["12|hybridiff|hybridiff:/elsewhere", "13|any|hybridiff:/runs/mine", "13|any|hybridiff:/runs/mine"]
    program(squeue, "\n".join(f"echo '{line}'" for line in [*lines, "14|hybridiff|(null)", "15|word|(null)"]))
    assert queued_jobs(stored_at("/runs/mine")) == ["13"]
    assert queued_jobs(stored_at("/runs/mine"), unnamed=True) == ["13", "14"]
    program(squeue, "echo no controller >&2; exit 1")
    with pytest.raises(ServiceError, match="squeue: exit code 1: no controller"):
        queued_jobs(stored_at("/runs/mine"))
