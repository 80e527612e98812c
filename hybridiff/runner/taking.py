"""Taking an output for a run, and leaving it as it was where the run is refused."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from hybridiff.cluster.launch import detect_batch_job
from hybridiff.cluster.queue import job_ended
from hybridiff.config import JobConfig
from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.lock import RunLock
from hybridiff.errors import UsageError
from hybridiff.runner.job import Job


def run_lock(config: JobConfig, corpus: Corpus, force_unlock: bool, taken: Callable[[], None] = lambda: None) -> RunLock:
    """The lock of this job's run on its output, not held yet."""
    batch = detect_batch_job()
    part = config.data.part, config.data.parts
    return RunLock(corpus, batch.id, force_unlock, batch.restarts, part, taken, batch.cluster, job_ended)  # type: ignore[arg-type]


def shares(config: JobConfig, retry_failed: bool) -> bool:
    """Whether a run shares its output with others, by claims; one that rewrites shards has it for itself."""
    return config.data.assignment == "claims" and not retry_failed


@contextmanager
def leaving_no_copies(job: Job) -> Iterator[None]:
    """Removes the copies of prompt tables that this process has made, if the body refuses the run.

    They stay where a run may use them: in a corpus of just these prompts, and where none was begun yet.
    """
    try:
        yield
    except UsageError:
        with suppress(Exception):  # the refusal is what is to be told
            run = job.corpus.read_run()
            if run is not None and run["plan"].get("content") != job.plan.content:
                job.plan.discard()
        raise
