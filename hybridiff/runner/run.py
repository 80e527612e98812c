"""Running a job, and how the run ended."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import astuple, dataclass, field, replace
from functools import partial
from typing import Any

from lightning.pytorch import Trainer

from hybridiff.cluster.exit_codes import AGAIN, DONE, NOT_DONE, TOO_MANY_FAILED
from hybridiff.cluster.launch import detect_batch_job
from hybridiff.cluster.queue import job_ended
from hybridiff.cluster.signals import RESUMABLE, StopSignals
from hybridiff.corpus.layout import LEASES, lease_of
from hybridiff.corpus.writable import check_writable
from hybridiff.errors import UsageError
from hybridiff.runner.counts import Counts, RunCounter, run_counts
from hybridiff.runner.data import ShardData
from hybridiff.runner.job import Job
from hybridiff.runner.module import CorpusModule
from hybridiff.runner.trainer import SignalCallback, build_trainer, ctrl_c, started_by_lightning, wait_for_children
from hybridiff.runner.writer import CorpusWriter
from hybridiff.storage.lease import Leases
from hybridiff.storage.lease_file import live_leases
from hybridiff.storage.owner import Owner

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a run ended, for one rank's group.

    Args:
        had_shards: whether the group acquired any shard.
        nothing_left: whether there was nothing to generate when the run began, for any group.
        signal: name of the signal that stopped it with work left; None if none did.
        generated: number of rows that it generated; ``failed`` of them.
        too_many_failed: whether it stopped for that reason, or, where it retried all failed rows, whether so many failed again.
        tries_all: whether failed rows were no reason to stop.
        lost: reasons why shards could not be written, by index.
        quiet: whether another rank reports for this one.
        counts: totals of all groups where all have ended together, else of this rank.
        code_if_left: exit code where shards are left, for a rank that reports for others.
    """

    had_shards: bool = False
    nothing_left: bool = False
    signal: str | None = None
    generated: int = 0
    failed: int = 0
    too_many_failed: bool = False
    tries_all: bool = False
    lost: dict[int, str] = field(default_factory=dict)
    quiet: bool = False
    code_if_left: int = DONE
    counts: Counts | None = None

    @property
    def code(self) -> int:
        """The exit code."""
        if self.too_many_failed:
            return TOO_MANY_FAILED
        return AGAIN if self.signal else NOT_DONE if self.lost else DONE

    def lines(self) -> list[str]:
        """Problems, a line each."""
        problems = [f"shard {index} was not written: {why}" for index, why in sorted(self.lost.items())]
        if self.too_many_failed:
            start = "" if self.tries_all else "stopped: "
            problems.append(f"{start}{self.failed} of {self.generated} rows failed, more than output.max_failed_fraction allows")
        elif self.signal:
            problems.append(f"stopped by {self.signal}; {RESUMABLE}")
        return problems


@dataclass(frozen=True)
class _Run:
    """The parts of a run on one rank."""

    job: Job
    signals: StopSignals
    leases: Leases | None
    data: ShardData
    writer: CorpusWriter
    trainer: Trainer


def run(job: Job, retry_failed: bool = False, launcher: int | None = None) -> Outcome:
    """Generates the shards that have no commit marker, or with ``retry_failed`` the failed rows of those that have.

    Any number of runs may share an output: each group acquires the lease on a shard before it generates it.

    Args:
        job: checked job.
        retry_failed: whether failed rows are generated again.
        launcher: the process that has started this one as a rank, which it should not outlive; None if there is none.

    Raises:
        UsageError: the output is not writable or holds a corpus of another configuration; the accelerator is not there.
    """
    with StopSignals(launcher) as signals:
        with _removing_copies_if_refused(job):
            this = _set_up(job, signals, retry_failed)
            check_writable(job.corpus)
            job.corpus.start_run(job.record)
        if job.launch.rank == 0:
            _log_start(this)
        return _end(this, _generate(this))


def _set_up(job: Job, signals: StopSignals, retry_failed: bool) -> _Run:
    leases = _leases(job, signals, retry_failed)
    if leases is not None:
        signals.release = leases.release_all
    writer = CorpusWriter(
        partial(job.open_shard, leases=leases, rewrites=retry_failed),
        job.config.output.encoder,
        job.corpus.is_transient,
        (lambda index: leases.release(lease_of(index))) if leases else lambda _: None,
    )
    callbacks = [SignalCallback(signals), writer, RunCounter()]
    trainer = build_trainer(job.trainer_options, job.config.parallel, job.launch, callbacks)
    data = ShardData(job.plan, job.corpus, job.config.data.batch_size, leases, signals, retry_failed)
    return _Run(job, signals, leases, data, writer, trainer)


def _leases(job: Job, signals: StopSignals, retry_failed: bool) -> Leases | None:
    """Leases of this process on shards; None where the storage cannot create a file only if it is absent."""
    if not job.corpus.creates_if_absent:
        return None
    batch_job = detect_batch_job()
    return Leases(
        job.corpus,
        LEASES,
        job.config.data.lease_s,
        owner=Owner.here(*astuple(batch_job)),
        is_done=(lambda _: False) if retry_failed else job.corpus.is_committed,
        job_ended=job_ended,
        sleep=signals.sleep,
    )


@contextmanager
def _removing_copies_if_refused(job: Job) -> Iterator[None]:
    """Removes this process's copies of prompt tables if the body refuses the run and its corpus has other prompts."""
    try:
        yield
    except UsageError:
        with suppress(Exception):  # the refusal is what is to be reported
            run = job.corpus.read_run()
            if run is not None and run["plan"].get("content") != job.plan.content:
                job.plan.discard()
        raise


def _generate(this: _Run) -> Outcome:
    module = CorpusModule(this.job.config, this.job.facts, this.signals, this.writer.given_up)
    with ctrl_c(), this.leases.heartbeat() if this.leases else nullcontext():
        this.trainer.predict(module, datamodule=this.data, return_predictions=False)
    return _outcome(module, this.data, this.writer)


def _outcome(module: CorpusModule, data: ShardData, writer: CorpusWriter) -> Outcome:
    stopping, signals = module.stopping, module.signals
    stopped = data.stopped
    if stopping is None:
        signal, nothing_left = signals.received if stopped else None, not data.rows and not data.lost
        return Outcome(nothing_left=nothing_left, signal=signal, tries_all=data.retry_failed, lost=dict(data.lost))
    too_many = stopping.too_many_failed and not (stopping.tries_all and stopped)
    return Outcome(
        had_shards=bool(data.shards),
        signal=signals.received if stopped and not too_many else None,
        generated=stopping.generated,
        failed=stopping.failed,
        too_many_failed=too_many,
        tries_all=stopping.tries_all,
        lost=data.lost | writer.lost,
    )


def _log_start(this: _Run) -> None:
    if this.leases is None:
        _log.warning(
            "output.url %s: this storage cannot create a file only if it is absent, so shards have no leases: start one run at a "
            "time",
            this.job.corpus.url,
        )
    for notice in this.job.plan.notices():
        _log.warning("%s", notice)
    if found := this.job.corpus.other_versions:
        _log.warning(
            "the corpus was started with other versions, so its last bits may differ from shard to shard: %s", "; ".join(found)
        )


def _end(this: _Run, outcome: Outcome) -> Outcome:
    """Waits for the other ranks where all should end together; the outcome with what follows from that."""
    signals, trainer = this.signals, this.trainer
    counts = run_counts(trainer)
    if outcome.code in (DONE, NOT_DONE):  # a group that others should follow ends without waiting
        strategy: Any = trainer.strategy
        counts = counts.summed(partial(strategy.end_together, signals))
    outcome = replace(outcome, counts=counts)
    wait_for_children(trainer, signals)
    if started_by_lightning(trainer):  # it kills all ranks once one of its own ends with another code than 0
        return Outcome(had_shards=bool(this.data.shards), quiet=True)
    return replace(outcome, code_if_left=_code_if_left(this))


def _code_if_left(this: _Run) -> int:
    """Exit code of a rank where shards are left although its group found no more to generate.

    The first rank ends after all others: what is left then, and held by no live owner, will not be generated.
    """
    job = this.job
    limited = job.config.trainer.limit_predict_batches is not None or this.data.retry_failed
    if job.launch.rank != 0 or limited:
        return DONE
    if this.signals.received:
        return AGAIN
    return DONE if this.leases and live_leases(job.corpus, LEASES) else NOT_DONE
