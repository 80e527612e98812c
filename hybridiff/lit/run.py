"""Running a job."""

import logging
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from hybridiff.lit.datamodule import PromptData
from hybridiff.lit.job import Job
from hybridiff.lit.launch import cluster, has_parent, job_id, restarts
from hybridiff.lit.module import CorpusModule
from hybridiff.lit.outcome import AGAIN, DONE, LEFT, Outcome
from hybridiff.lit.queue import is_over
from hybridiff.lit.signals import ANOTHER_RUN, SignalCallback, StopSignals
from hybridiff.lit.trainer import build_trainer, children, started_by_lightning, wait_for_children
from hybridiff.lit.writer import CorpusWriter
from hybridiff.sinks.claimed import at_work
from hybridiff.sinks.lock import RunLock
from hybridiff.sinks.renewal import Renewal
from hybridiff.sinks.writable import check_writable

_log = logging.getLogger(__name__)


def run(job: Job, retry_failed: bool = False, force_unlock: bool = False, parent: int | None = None) -> Outcome:
    """Generates the shards that have no commit marker, or with ``retry_failed`` the failed rows of those that have.

    Runs with claims share an output. Any other has it for itself: it rewrites shards, or takes them without asking. So has one
    with ``retry_failed``, whatever data.assignment is.

    Args:
        force_unlock: Whether to take the output over from another run that seems to write it.
        parent: The process that has started this one, as early as it was known.

    Raises:
        UsageError: the output is not writable, is being written by another run, or holds a corpus of another configuration; the
            accelerator is not there.
    """
    with StopSignals(parent if has_parent() else None) as signals, ExitStack() as open_until_the_end:
        signals.release = open_until_the_end.close
        claims = None if retry_failed else job.make_claims(signals.sleep)
        open_shard = job.reopen_shard if retry_failed else partial(job.open_shard, claims=claims)
        closed = claims.release if claims else lambda _: None
        writer = CorpusWriter(open_shard, job.config.output, job.corpus.passing, closed)
        trainer = build_trainer(job.trainer_options, job.config.parallel, job.launch, [SignalCallback(signals), writer])
        check_writable(job.corpus)
        part = (job.config.data.part, job.config.data.parts)
        if job.launch.rank == 0:
            taken = partial(signals.ask, ANOTHER_RUN)
            ended = partial(is_over, here=cluster())
            lock = RunLock(job.corpus, job_id(), force_unlock, restarts(), part, taken, cluster(), ended)
            lock.check() if claims else open_until_the_end.enter_context(lock)
        job.corpus.start_run(job.record)
        if job.launch.rank == 0:
            _tell_versions(job)
        data = PromptData(job.plan, job.corpus, job.config.data.batch_size, claims, retry_failed, signals, part)
        module = CorpusModule(job.config, job.facts, signals)
        try:
            with Renewal(claims, job.config.data.lease_s) if claims else nullcontext():
                trainer.predict(module, datamodule=data, return_predictions=False)
        except SystemExit as stopped:  # Lightning's way of ending after Ctrl-C
            if isinstance(stopped.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from stopped
            raise
        outcome = _outcome(module, data, writer)
        if outcome.code in (DONE, LEFT):  # a group that others should follow ends at once
            strategy: Any = trainer.strategy
            strategy.end_together(signals)
        wait_for_children(trainer, signals)
        if started_by_lightning(trainer):  # it kills all ranks once one of its own ends with another code than 0
            return Outcome(drew=bool(data.shards), quiet=True)
        speaks = bool(children(trainer)) and job.trainer_options.get("limit_predict_batches") is None
        left = AGAIN if signals.received else DONE if claims and at_work(job.corpus) else LEFT
        return replace(outcome, if_left=left if speaks else DONE)


def _tell_versions(job: Job) -> None:
    if found := job.corpus.other_versions:
        _log.warning(
            "the corpus was begun with other versions, so its last bits may differ from shard to shard: %s", "; ".join(found)
        )


def _outcome(module: CorpusModule, data: PromptData, writer: CorpusWriter) -> Outcome:
    stopping = module.stopping
    if stopping is None:
        return Outcome(signal=module.signals.received if data.stopped else None, lost=dict(data.lost))
    too_many = stopping.too_many_failed
    signal = module.signals.received if data.stopped and not too_many else None
    return Outcome(bool(data.shards), signal, stopping.drawn, stopping.failed, too_many, data.lost | writer.lost)
