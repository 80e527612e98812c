"""SLURM's queue as one corpus sees it: which jobs write to it, one more of them, and whether a job has ended."""

import os
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hybridiff.cluster.launch import detect_batch_job
from hybridiff.cluster.sizing import Size, walltime
from hybridiff.corpus.corpus import Corpus
from hybridiff.errors import ServiceError, UsageError
from hybridiff.secrets import redact
from hybridiff.storage.filesystem import is_local
from hybridiff.storage.owner import Owner

JOB_NAME = "hybridiff"  # as in the shipped scripts
ANSWER_S = 60.0
ENDED = {"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "PREEMPTED", "OUT_OF_MEMORY", "DEADLINE"}  # not NODE_FAIL: who knows
KEPT = {"SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT"}  # of a job in which another is submitted; the rest describes that job


@dataclass(frozen=True)
class Submission:
    """A call of sbatch.

    Args:
        variables: environment variables to add.
        command: the program and its arguments.
    """

    variables: dict[str, str]
    command: list[str]

    def __str__(self) -> str:
        """The call as a line for a shell."""
        return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in self.variables.items()), shlex.join(self.command)])

    def submit(self, environment: Mapping[str, str] = os.environ) -> tuple[int, str]:
        """Calls sbatch in the working directory; its exit code, and the job's number.

        Raises:
            UsageError: there is no SLURM here.
        """
        kept = {name: value for name, value in environment.items() if not name.startswith("SLURM_") or name in KEPT}
        try:
            done = subprocess.run(self.command, stdout=subprocess.PIPE, text=True, env=kept | self.variables)
        except FileNotFoundError as error:
            raise UsageError("there is no sbatch here; allowed: --submit on a machine that has SLURM") from error
        return done.returncode, done.stdout.strip().split(";")[0]


def sbatch(
    script: Path,
    size: Size,
    corpus: Corpus,
    gpus: int,
    ranks: int,
    array: bool,
    options: list[str],
    arguments: list[str],
    python: str | None = None,
) -> Submission:
    """The call of sbatch for a job. Its options win over the ``#SBATCH`` lines of the script.

    Args:
        script: generate.sbatch or array.sbatch, in the folder of job.sh.
        size: size of the job.
        corpus: that the job writes.
        gpus: GPUs of a node; 0 to generate on CPUs.
        ranks: ranks of a node.
        array: whether it is an array of single nodes.
        options: further options of sbatch.
        arguments: arguments of ``hybridiff generate``.
        python: directory of the environment whose python runs the job; None leaves it to the script.
    """
    variables = {"HYBRIDIFF_SLURM": str(script.parent)}
    variables |= {"HYBRIDIFF_ENV": f"venv:{python}"} if python else {}
    variables |= {"RANKS_PER_NODE": str(ranks)} if gpus and ranks != gpus else {}
    words = ["--nodes=1", f"--array=0-{size.tasks - 1}"] if array else [f"--nodes={size.tasks}"]
    words += [f"--gpus-per-node={gpus}", *([] if gpus else [f"--ntasks-per-node={ranks}"])]
    words += [f"--time={walltime(size.walltime_s)}", f"--comment={comment(corpus)}", *options]
    return Submission(variables, ["sbatch", "--parsable", *words, str(script), *arguments])


def check_secrets(arguments: list[str]) -> None:
    """Refuses secrets among arguments of ``hybridiff generate``, as SLURM shows the arguments of a job to everybody.

    Raises:
        UsageError: naming the option that holds one.
    """
    for name, value in zip(["", *arguments], [*arguments, ""], strict=True):
        given = name if "=" in name else f"{name}={value}"
        if name.startswith("--") and redact(given) != given:
            raise UsageError(
                f"{given.partition('=')[0].removeprefix('--')} holds a secret, and SLURM shows the arguments of a job; "
                "allowed: secrets in the environment, such as AWS_SECRET_ACCESS_KEY, or in a file given with --config"
            )


def comment(corpus: Corpus) -> str:
    """The comment of jobs that write a corpus: its address, the same wherever they are submitted."""
    return f"hybridiff:{corpus.root if is_local(corpus.fs) else corpus.url.rstrip('/')}"


def queued_jobs(corpus: Corpus, unnamed: bool = False) -> list[str] | None:
    """Numbers of this user's jobs in the queue that write a corpus; None where there is no SLURM.

    Args:
        corpus: named by the jobs' comment.
        unnamed: whether to count jobs without a comment too, as they may write it.

    Raises:
        ServiceError: SLURM does not answer.
    """
    command = ["squeue", "--me", "--noheader", "--format=%F|%j|%k"]
    try:
        queue = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S)
    except FileNotFoundError:
        return None
    except subprocess.TimeoutExpired as error:
        raise ServiceError(f"squeue did not answer within {ANSWER_S:.0f} s") from error
    if queue.returncode:
        raise ServiceError(f"squeue: exit code {queue.returncode}: {queue.stderr}")
    counted = {f"{JOB_NAME}|(null)", f"{JOB_NAME}|"} if unnamed else set()
    jobs = (line.split("|", 1) for line in queue.stdout.splitlines())
    named = (number for number, rest in jobs if rest in counted or rest.partition("|")[2] == comment(corpus))
    return list(dict.fromkeys(named))


def job_ended(owner: Owner, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether SLURM says that the job of a lease's owner has ended; False where that is unknown, as of other clusters."""
    if owner.job is None or owner.cluster is None or owner.cluster != detect_batch_job(environment).cluster:
        return False
    command = ["squeue", "--noheader", f"--jobs={owner.job}", "--states=all", "--format=%T"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S)
    except (OSError, subprocess.TimeoutExpired):
        return False
    states = set(answer.stdout.split())
    return answer.returncode == 0 and bool(states) and states <= ENDED
