"""Running a job."""

import logging
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from lightning.pytorch import Trainer

from hybridiff.cluster.exit_codes import AGAIN, DONE, NOT_DONE
from hybridiff.cluster.launch import has_parent
from hybridiff.cluster.signals import StopSignals
from hybridiff.corpus.claimed import at_work
from hybridiff.corpus.claims import Claims
from hybridiff.corpus.renewal import Renewal
from hybridiff.corpus.writable import check_writable
from hybridiff.runner.claimed_data import ClaimedData
from hybridiff.runner.datamodule import PromptData
from hybridiff.runner.failed_data import FailedData
from hybridiff.runner.job import Job
from hybridiff.runner.module import CorpusModule
from hybridiff.runner.outcome import Outcome, outcome_of
from hybridiff.runner.signal_callback import SignalCallback
from hybridiff.runner.taking import leaving_no_copies, run_lock, shares
from hybridiff.runner.trainer import build_trainer, children, ctrl_c, started_by_lightning, wait_for_children
from hybridiff.runner.writer import CorpusWriter

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Run:
    """What one rank runs with."""

    job: Job
    signals: StopSignals
    claims: Claims | None
    data: PromptData
    writer: CorpusWriter
    trainer: Trainer


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
        with leaving_no_copies(job):
            this = _set_up(job, signals, retry_failed)
            check_writable(job.corpus)
            if job.launch.rank == 0:
                _take(this, force_unlock, open_until_the_end)
            job.corpus.start_run(job.record)
        if job.launch.rank == 0:
            _tell_versions(job)
        return _end(this, _draw(this))


def _set_up(job: Job, signals: StopSignals, retry_failed: bool) -> _Run:
    claims = job.make_claims(signals.sleep, signals.take_over) if shares(job.config, retry_failed) else None
    writer = CorpusWriter(
        job.reopen_shard if retry_failed else partial(job.open_shard, claims=claims),
        job.config.output.encoder,
        job.corpus.passing,
        claims.release if claims else lambda _: None,
        lambda: signals.taken_over,
    )
    trainer = build_trainer(job.trainer_options, job.config.parallel, job.launch, [SignalCallback(signals), writer])
    return _Run(job, signals, claims, _data(job, signals, claims, retry_failed), writer, trainer)


def _data(job: Job, signals: StopSignals, claims: Claims | None, retry_failed: bool) -> PromptData:
    """What is drawn: the shards that groups claim, the failed rows, or each group's own shards."""
    if claims is not None:
        return ClaimedData(job.plan, job.corpus, job.config.data.batch_size, claims, signals)
    kind = FailedData if retry_failed else PromptData
    return kind(job.plan, job.corpus, job.config.data.batch_size, (job.config.data.part, job.config.data.parts))


def _take(this: _Run, force_unlock: bool, open_until_the_end: ExitStack) -> None:
    """Takes the output for this run; with claims, from runs without."""
    lock = run_lock(this.job.config, this.job.corpus, force_unlock, this.signals.take_over)
    if this.claims:
        lock.share()
    else:
        open_until_the_end.enter_context(lock)


def _draw(this: _Run) -> Outcome:
    job, claims = this.job, this.claims
    module = CorpusModule(job.config, job.facts, this.signals, this.writer.given_up)
    with ctrl_c(), Renewal(claims, job.config.data.lease_s) if claims else nullcontext():
        this.trainer.predict(module, datamodule=this.data, return_predictions=False)
    return outcome_of(module, this.data, this.writer)


def _tell_versions(job: Job) -> None:
    if found := job.corpus.other_versions:
        _log.warning(
            "the corpus was begun with other versions, so its last bits may differ from shard to shard: %s", "; ".join(found)
        )


def _end(this: _Run, outcome: Outcome) -> Outcome:
    """Ends together with the other ranks, as far as they should; what is to be said of it all."""
    job, signals, trainer = this.job, this.signals, this.trainer
    if outcome.code in (DONE, NOT_DONE):  # a group that others should follow ends at once
        strategy: Any = trainer.strategy
        strategy.end_together(signals)
    wait_for_children(trainer, signals)
    if started_by_lightning(trainer):  # it kills all ranks once one of its own ends with another code than 0
        return Outcome(drew=bool(this.data.shards), quiet=True)
    speaks = bool(children(trainer)) and job.trainer_options.get("limit_predict_batches") is None
    left = AGAIN if signals.received else DONE if this.claims and at_work(job.corpus) else NOT_DONE
    return replace(outcome, if_left=left if speaks else DONE)
