"""SLURM's queue, as one corpus sees it: which jobs write to it, and one more of them."""

import os
import subprocess
from pathlib import Path

from hybridiff.cluster.launch import detect_batch_job
from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.names import LEASES
from hybridiff.errors import UsageError
from hybridiff.storage.filesystem import is_local
from hybridiff.storage.lease import Owner, live_leases

JOB_NAME = "hybridiff"  # that the shipped scripts give
ASK_S = 60.0
OVER = {"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "PREEMPTED", "OUT_OF_MEMORY", "DEADLINE"}  # of a failed node nobody knows
KEPT = {"SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT"}  # of a job in which another is submitted; the rest describes that job


def comment(corpus: Corpus) -> str:
    """What jobs on a corpus have as their comment: where it lies, the same wherever they are submitted."""
    return f"hybridiff:{corpus.root if is_local(corpus.fs) else corpus.url.rstrip('/')}"


def writers(corpus: Corpus, perhaps: bool = False) -> list[str] | None:
    """Numbers of this user's jobs in the queue that write to a corpus; None where there is no SLURM.

    Args:
        corpus: Named by the jobs' comment.
        perhaps: Whether to count those that were submitted without one, too.

    Raises:
        UsageError: SLURM does not answer.
    """
    command = ["squeue", "--me", "--noheader", "--format=%F|%j|%k"]
    try:
        queue = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S)
    except FileNotFoundError:
        return None
    except subprocess.TimeoutExpired as error:
        raise UsageError(f"squeue did not answer within {ASK_S:.0f} s") from error
    if queue.returncode:
        raise UsageError(f"squeue: exit code {queue.returncode}: {queue.stderr}")
    known = {f"{JOB_NAME}|(null)", f"{JOB_NAME}|"} if perhaps else set()
    jobs = (line.split("|", 1) for line in queue.stdout.splitlines())
    return list(dict.fromkeys(number for number, rest in jobs if rest in known or rest.split("|", 1)[1] == comment(corpus)))


def over(corpus: Corpus) -> bool:
    """Whether nobody is at work on a corpus, and nobody in the queue will be; False where there is no SLURM to ask."""
    return writers(corpus, perhaps=True) == [] and not live_leases(corpus, LEASES)


def job_ended(owner: Owner) -> bool:
    """Whether SLURM reports that the job of a lease's owner has ended; False where it does not know, or is not asked.

    Args:
        owner: process that holds a lease; SLURM is asked about jobs of this cluster only
    """
    if owner.job is None or owner.cluster is None or owner.cluster != detect_batch_job().cluster:
        return False
    command = ["squeue", "--noheader", f"--jobs={owner.job}", "--states=all", "--format=%T"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S)
    except (OSError, subprocess.TimeoutExpired):
        return False
    states = set(answer.stdout.split())
    return answer.returncode == 0 and bool(states) and states <= OVER


def submit(text: str, corpus: Corpus, folder: Path) -> tuple[int, str]:
    """Submits a batch script; sbatch's exit code, and the job's number.

    Args:
        text: Of the script.
        corpus: That it writes to.
        folder: Where the job will run.

    Raises:
        UsageError: there is no SLURM here, or another job in the queue writes to the corpus.
    """
    found = writers(corpus)
    if found is None:
        raise UsageError("there is no squeue here; allowed: --submit on a machine that has SLURM, or --write FILE")
    if found:
        where = comment(corpus).removeprefix("hybridiff:")
        raise UsageError(f"job {found[0]} in the queue writes to {where}; allowed: one job on a corpus, see scancel {found[0]}")
    passed_on = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_") or name in KEPT}
    try:
        done = subprocess.run(["sbatch", "--parsable"], input=text, stdout=subprocess.PIPE, text=True, cwd=folder, env=passed_on)
    except FileNotFoundError as error:
        raise UsageError("there is no sbatch here; allowed: --submit on a machine that has SLURM, or --write FILE") from error
    return done.returncode, done.stdout.strip().split(";")[0]
