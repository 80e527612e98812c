"""The job: checked before anything is loaded, then run."""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import torch

from hybridiff import __version__
from hybridiff.config import JobConfig, ParallelConfig, SamplingConfig, UsageError, require
from hybridiff.data.plan import Plan, make_plan
from hybridiff.data.store import Role
from hybridiff.lit.datamodule import PromptData
from hybridiff.lit.launch import Launch, detect_launch, has_parent, job_id, restarts
from hybridiff.lit.module import CorpusModule
from hybridiff.lit.outcome import AGAIN, DONE, LEFT, Outcome
from hybridiff.lit.signals import ANOTHER_RUN, SignalCallback, StopSignals
from hybridiff.lit.topology import check_gpus
from hybridiff.lit.trainer import GPU_ACCELERATORS, build_trainer, children, started_by_lightning, wait_for_children
from hybridiff.lit.writer import CorpusWriter
from hybridiff.models.cuts.plans import require_class
from hybridiff.models.facts import ModelFacts, check_model, read_facts, scheduler_class, weights_revision
from hybridiff.parallel.layout import SEGMENTED
from hybridiff.parallel.mesh import check_world
from hybridiff.schedule import Sampler, make_schedule
from hybridiff.secrets import redact
from hybridiff.sinks.again import ShardAgain
from hybridiff.sinks.claimed import at_work
from hybridiff.sinks.claims import Claims
from hybridiff.sinks.columns import RowSettings
from hybridiff.sinks.corpus import Corpus
from hybridiff.sinks.lock import RunLock
from hybridiff.sinks.record import RunRecord
from hybridiff.sinks.renewal import Renewal
from hybridiff.sinks.shard import ShardWriter

PACKAGES = ("torch", "lightning", "diffusers", "transformers", "webdataset", "pyarrow", "pillow")
NOT_CONTENT = frozenset(
    {
        "data.part",
        "data.parts",
        "output.url",
        "output.shard_bytes",  # counts by the shard_size that it makes
        "parallel.leave_idle",
        "parallel.timeout_s",
        "parallel.across_nodes",
        "data.prompts",
        "data.prompt_column",
        "data.key_column",
        "data.assignment",
        "data.lease_s",
        "output.grace_s",
        "output.max_failed_fraction",
        "trainer",
    }
)


@dataclass(frozen=True)
class Job:
    """A checked job, ready to run."""

    config: JobConfig
    trainer_options: dict[str, Any]
    trainer_record: dict[str, Any]
    launch: Launch
    facts: ModelFacts
    plan: Plan
    corpus: Corpus
    settings: RowSettings

    @property
    def record(self) -> RunRecord:
        """What the corpus will be known by; prompts and weights count by content, wherever they lie."""
        config = self.config
        options = asdict(config)
        options["model"]["weights"] = self.settings.revision
        options["output"]["shard_size"] = config.output.images_per_shard(*image_size(config.sampling, self.facts))
        return RunRecord(
            configuration=options | {"trainer": self.trainer_record},
            plan={"rows": self.plan.rows, "shards": self.plan.shards, "content": self.plan.content},
            excluded=NOT_CONTENT,
            versions={"hybridiff": __version__, "python": platform.python_version()} | {p: version(p) for p in PACKAGES},
            hardware={
                "machine": platform.machine(),
                "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
                "ranks": self.launch.world_size,
                "nodes": self.launch.nodes,
            },
        )

    def make_claims(self, sleep: Callable[[float], None] = time.sleep) -> Claims | None:
        """This group's claims on shards, where the configuration has groups claim them."""
        data = self.config.data
        return Claims(self.corpus, self.plan.shards, data.lease_s, sleep=sleep) if data.assignment == "claims" else None

    def open_shard(self, index: int, claims: Claims | None = None) -> ShardWriter:
        """The writer of a shard."""
        self.corpus.check_there()
        return self._writer(ShardWriter, index, None if claims is None else partial(claims.require, index))

    def reopen_shard(self, index: int) -> ShardWriter:
        """The writer of a committed shard, some of whose rows are drawn again."""
        return self._writer(ShardAgain, index)

    def _writer(self, kind: type[ShardWriter], index: int, require: Callable[[], None] | None = None) -> ShardWriter:
        output = self.config.output
        return kind(
            self.corpus,
            index,
            self.settings,
            self.plan.user_schema,
            output.image_format,
            output.quality,
            require=require,
            sidecar=output.sidecar == "json",
            embed_images=output.embed_images,
        )


def prepare(config: JobConfig, trainer_options: dict[str, Any], trainer_record: dict[str, Any], writes: bool = True) -> Job:
    """Checks everything that can be checked without loading a model or making a trainer.

    Nothing is written but copies of large prompt tables, by rank 0, into the corpus, and nothing at all unless ``writes``.

    Raises:
        UsageError: one line on what was given and what is allowed; the same on every rank.
    """
    launch = detect_launch(trainer_options.get("devices", "auto"), int(trainer_options.get("num_nodes") or 1))
    check_node(launch, config.parallel, trainer_options.get("accelerator", "auto"))
    across = config.parallel.across_nodes
    check_world(launch.world_size, config.parallel.group_size, None if across else launch.local_world_size)
    facts = read_facts(config.model)
    check_model(config.model, config.sampling, facts)
    check_schedule(config, facts)
    corpus = Corpus(config.output.url)
    role: Role = "alone" if not writes else "lead" if launch.rank == 0 else "follow"
    shard_size = config.output.images_per_shard(*image_size(config.sampling, facts))
    plan = make_plan(config.data, config.sampling, shard_size, corpus, role)
    settings = RowSettings(
        guidance_scale=config.sampling.guidance_scale,
        steps=config.sampling.steps,
        scheduler=config.model.scheduler or facts.scheduler,
        model=redact(config.model.path),
        revision=weights_revision(config.model, facts),
        version=__version__,
        dtype=config.model.dtype,
        device=device_name(trainer_options.get("accelerator") or "auto"),
        group_size=config.parallel.group_size,
        schedule=config.parallel.schedule,
        schedule_options=json.dumps(config.schedule.given()),
    )
    return Job(config, trainer_options, trainer_record, launch, facts, plan, corpus, settings)


def check_node(launch: Launch, parallel: ParallelConfig, accelerator: Any, environment: Mapping[str, str] = os.environ) -> None:
    """Refuses ranks of a SLURM step that do not fit the GPUs of their node; elsewhere a node may be shared.

    Raises:
        UsageError: naming the numbers and the choices.
    """
    if accelerator in GPU_ACCELERATORS and torch.cuda.is_available() and "SLURM_STEP_ID" in environment:
        check_gpus(torch.cuda.device_count(), launch.local_world_size, parallel.group_size, parallel.leave_idle)


def check_schedule(config: JobConfig, facts: ModelFacts) -> None:
    """Refuses options that the schedule does not have, a window that does not fit, a denoiser that cannot be cut.

    Raises:
        UsageError: naming the option, what was given and what is allowed.
    """
    try:
        schedule = make_schedule(config.parallel.schedule, **config.schedule.given())
        name = config.model.scheduler or facts.scheduler
        order = getattr(scheduler_class(name), "order", 1)  # of a Heun sampler 2: all steps but the last are two calls
        schedule.check(Sampler(order * config.sampling.steps - (order - 1), facts.denoiser, name))
        for option, given in config.schedule.given().items():
            guided = config.sampling.guidance_scale > 1
            require(guided, option, given, "nothing with sampling.guidance_scale at 1 or below, where every step is full")
    except UsageError as error:
        raise UsageError(f"schedule.{error}") from error
    if config.parallel.group_size > 1 and schedule.kinds & SEGMENTED:
        require_class(facts.denoiser)


def image_size(sampling: SamplingConfig, facts: ModelFacts) -> tuple[int, int]:
    """Width and height of an image in pixels."""
    return sampling.width or facts.default_size, sampling.height or facts.default_size


def device_name(accelerator: str) -> str:
    """What the images are drawn on: a GPU's name, or the kind of CPU."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu {platform.machine()}" if accelerator in ("auto", "cpu", "gpu", "cuda") else accelerator


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
        job.corpus.check_writable()
        part = (job.config.data.part, job.config.data.parts)
        if job.launch.rank == 0:
            taken = partial(signals.ask, ANOTHER_RUN)
            lock = RunLock(job.corpus, job_id(), force_unlock, restarts(), part, taken)
            lock.check() if claims else open_until_the_end.enter_context(lock)
        job.corpus.start_run(job.record)
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


def _outcome(module: CorpusModule, data: PromptData, writer: CorpusWriter) -> Outcome:
    stopping = module.stopping
    if stopping is None:
        return Outcome(signal=module.signals.received if data.stopped else None)
    too_many = stopping.too_many_failed
    signal = module.signals.received if data.stopped and not too_many else None
    return Outcome(bool(data.shards), signal, stopping.drawn, stopping.failed, too_many, dict(writer.lost))
