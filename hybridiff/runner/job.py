"""A checked job: what it is made of, how options become one, and what its corpus is known by."""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import torch

from hybridiff import __version__
from hybridiff.cluster.gpus import check_node, device_name, device_type
from hybridiff.cluster.launch import Launch, check_trainer, detect_launch
from hybridiff.config import Dtype, JobConfig, ParallelConfig, SamplingConfig, TrainerConfig
from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.layout import lease_of
from hybridiff.corpus.record import RunRecord
from hybridiff.corpus.rewrite import ShardRewriter
from hybridiff.corpus.shard import ShardWriter
from hybridiff.corpus.writable import check_free
from hybridiff.errors import UsageError, require
from hybridiff.models.cuts.plans import has_plan, no_plan
from hybridiff.models.dtypes import AUTO, resolve_dtype
from hybridiff.models.execution import check_execution_device
from hybridiff.models.facts import ModelFacts, check_model, read_facts, weights_revision
from hybridiff.models.guidance import refused_negative_prompts
from hybridiff.models.schedulers import scheduler_class
from hybridiff.parallel.mesh import check_world
from hybridiff.parallel.rank_work import needs_segments
from hybridiff.prompts.plan import Plan, make_plan
from hybridiff.prompts.shared import Role
from hybridiff.runner.trainer import lightning_options
from hybridiff.schedule import Sampler, schedule_spec
from hybridiff.secrets import redact
from hybridiff.storage.filesystem import is_memory
from hybridiff.storage.lease import Leases, check_lease

PACKAGES = ("torch", "lightning", "diffusers", "transformers", "webdataset", "pyarrow", "pillow", "zlib-ng")
NOT_CONTENT = frozenset(
    {
        "output.url",
        "output.shard_bytes",  # counts by the shard_size that it makes
        "parallel.leave_idle",
        "parallel.timeout_s",
        "parallel.across_nodes",
        "data.prompts",
        "data.prompt_column",
        "data.key_column",
        "data.delimiter",
        "data.encoding",
        "data.empty_prompts",
        "data.max_text",
        "data.max_expansion",
        "data.max_rows",
        "data.max_row_group",
        "data.lease_s",
        "output.grace_s",
        "output.max_failed_fraction",
        "trainer",
    }
)


@dataclass(frozen=True)
class Job:
    """A checked job, ready to run.

    Args:
        config: options, with the dtype resolved.
        trainer_options: options of Lightning's ``Trainer``, with logger and callback objects.
        launch: ranks of the job.
        facts: facts about the model.
        plan: shards of the corpus and their rows.
        corpus: output.
        run_values: values of the columns that are equal in all rows of the run.
    """

    config: JobConfig
    trainer_options: dict[str, Any]
    launch: Launch
    facts: ModelFacts
    plan: Plan
    corpus: Corpus
    run_values: dict[str, Any]

    @property
    def record(self) -> RunRecord:
        """The corpus's ``run.json``; prompts and weights are identified by content, not by path."""
        hardware = {
            "machine": platform.machine(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "ranks": self.launch.world_size,
            "nodes": self.launch.nodes,
        }
        return RunRecord(
            configuration=recorded_options(self.config, self.facts, self.run_values["revision"]),
            plan={"rows": self.plan.rows, "shards": self.plan.shards, "content": self.plan.content, "table": self.plan.summary},
            excluded=NOT_CONTENT,
            versions={"hybridiff": __version__, "python": platform.python_version()} | {p: version(p) for p in PACKAGES},
            hardware=hardware,
            describe_change=self.plan.describe_change,
        )

    def open_shard(self, index: int, leases: Leases | None = None, rewrites: bool = False) -> ShardWriter:
        """A writer of one shard.

        Args:
            index: index of the shard.
            leases: leases of this process; None where the storage has none.
            rewrites: whether the shard is committed, and some of its rows are generated again.
        """
        self.corpus.check_there()
        kind = ShardRewriter if rewrites else ShardWriter
        require_lease = None if leases is None else partial(leases.require, lease_of(index))
        output = self.config.output
        return kind(
            self.corpus,
            index,
            self.run_values,
            carried(self.plan.user_schema, output.columns),
            output.encoder,
            require=require_lease,
            sidecar=output.sidecar == "json",
            embed_images=output.embed_images,
        )


def carried(user_schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    """The columns of the prompt tables that the corpus carries.

    Args:
        user_schema: columns of the tables, under the names that the corpus stores them with.
        columns: names of the carried columns; None for all.

    Raises:
        UsageError: a name is not among them.
    """
    for name in columns or ():
        allowed = f"{', '.join(user_schema.names) or 'none'} (columns of data.prompts), or nothing for all"
        require(name in user_schema.names, "output.columns", name, allowed)
    return user_schema if columns is None else pa.schema([field for field in user_schema if field.name in columns])


def recorded_options(config: JobConfig, facts: ModelFacts, revision: str | None) -> dict[str, Any]:
    """The options of a job as run.json holds them, with the identity of the weights."""
    options = asdict(replace(config, data=replace(config.data, prompts=[*config.data.names])))
    options["parallel"]["schedule"] = schedule_spec(config.parallel.schedule)
    options["model"]["weights"] = revision
    options["output"]["shard_size"] = config.output.images_per_shard(*image_size(config.sampling, facts))
    return options


def image_size(sampling: SamplingConfig, facts: ModelFacts) -> tuple[int, int]:
    """Width and height of an image in pixels."""
    return sampling.width or facts.default_size, sampling.height or facts.default_size


def prepare(config: JobConfig, writes: bool = True, planned: Launch | None = None) -> Job:
    """Checks everything that can be checked without loading a model or making a trainer.

    Nothing is written but copies of large prompt tables, by rank 0, into the corpus, and nothing at all unless ``writes``.

    Args:
        config: all options.
        writes: whether the job will write.
        planned: ranks of a job that will start elsewhere; None for a job of this process.

    Raises:
        UsageError: a mistake in the options, the same on every rank.
    """
    launch = check_launch(config.trainer, config.parallel, planned)
    across = config.parallel.across_nodes
    check_world(launch.world_size, config.parallel.group_size, None if across else launch.local_world_size)
    facts = read_facts(config.model)
    config = replace(config, model=replace(config.model, dtype=_dtype(config, planned)))
    check_model(config.model, config.sampling, facts)
    if planned is None:
        check_execution_device(config.model, device_type(config.trainer.accelerator))
    check_schedule(config, facts)
    corpus = Corpus(config.output.url)
    if corpus.creates_if_absent:
        check_lease(corpus, config.data.lease_s)
    check_free(corpus)
    require(not is_memory(corpus.fs), "output.url", corpus.url, "a directory or an fsspec url that lasts")
    values = run_values(config, facts, device_name(config.trainer.accelerator))
    role: Role = "alone" if not writes else "lead" if launch.rank == 0 else "follow"
    shard_size = config.output.images_per_shard(*image_size(config.sampling, facts))

    def check_output() -> None:
        """Refuses another configuration's corpus before tables are copied into it."""
        corpus.check_configuration(RunRecord(recorded_options(config, facts, values["revision"]), {}, NOT_CONTENT))

    plan = make_plan(
        config.data,
        config.sampling,
        shard_size,
        corpus,
        role,
        before_copying=check_output,
        negative_prompts=refused_negative_prompts(facts.pipeline_class, config.sampling, facts.distilled),
    )
    carried(plan.user_schema, config.output.columns)
    options = lightning_options(config.trainer)
    return Job(config, options, launch, facts, plan, corpus, values)


def _dtype(config: JobConfig, planned: Launch | None) -> Dtype:
    """The model's dtype; for a job that will start on other machines, the one of its corpus."""
    dtype = config.model.dtype
    if planned is None or dtype != AUTO:
        return resolve_dtype(dtype, config.trainer.accelerator)
    recorded = Corpus(config.output.url).read_run() or {}
    known: Dtype = recorded.get("configuration", {}).get("model", {}).get("dtype", AUTO)
    return known


def run_values(config: JobConfig, facts: ModelFacts, device: str) -> dict[str, Any]:
    """The values of the columns that are equal in all rows of a run."""
    return dict(
        guidance_scale=config.sampling.guidance_scale,
        steps=config.sampling.steps,
        scheduler=config.model.scheduler or facts.scheduler,
        model=redact(config.model.path),
        revision=weights_revision(config.model, facts),
        version=__version__,
        dtype=config.model.dtype,
        device=device,
        group_size=config.parallel.group_size,
        schedule=config.parallel.schedule.name,
        schedule_options=json.dumps(config.parallel.schedule.options(defaults=False)),
    )


def check_launch(trainer: TrainerConfig, parallel: ParallelConfig, planned: Launch | None) -> Launch:
    """The ranks of the job, as started or as planned.

    Raises:
        UsageError: the trainer options contradict them, or they do not fit their nodes.
    """
    devices, nodes = trainer.devices, trainer.num_nodes
    if planned is not None:
        check_trainer(devices, nodes, planned, option="--ranks_per_node")
        return planned
    launch = detect_launch(devices, nodes)
    check_node(launch, parallel, trainer.accelerator)
    return launch


def check_schedule(config: JobConfig, facts: ModelFacts) -> None:
    """Refuses a schedule that does not fit the sampler, and a denoiser that cannot be cut where it needs segments.

    Raises:
        UsageError: naming the option, what was given and what is allowed.
    """
    schedule = config.parallel.schedule
    try:
        name = config.model.scheduler or facts.scheduler
        order = getattr(scheduler_class(name), "order", 1)  # of a Heun sampler 2: all steps but the last are two calls
        schedule.check(Sampler(order * config.sampling.steps - (order - 1), facts.denoiser, name))
    except UsageError as error:
        raise UsageError(f"parallel.schedule.{error}") from error
    cannot_do_without = needs_segments(schedule, config.parallel.group_size) and schedule.without_half_steps() is None
    if cannot_do_without and not has_plan(facts.denoiser):
        raise no_plan(facts.denoiser, f"schedule {schedule.name}")
