"""Preparing a job: everything is checked before anything is loaded."""

import json
from dataclasses import replace

from hybridiff import __version__
from hybridiff.cluster.gpus import check_node, device_name
from hybridiff.cluster.launch import Launch, check_trainer, detect_launch
from hybridiff.config import JobConfig, ParallelConfig, TrainerConfig
from hybridiff.corpus.columns import RowSettings
from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.record import RunRecord
from hybridiff.corpus.writable import check_free
from hybridiff.errors import UsageError, require
from hybridiff.models.cuts.plans import require_class
from hybridiff.models.dtypes import AUTO, resolve_dtype
from hybridiff.models.facts import ModelFacts, check_model, read_facts, scheduler_class, weights_revision
from hybridiff.parallel.layout import SEGMENTED
from hybridiff.parallel.mesh import check_world
from hybridiff.prompts.plan import make_plan
from hybridiff.prompts.shared import Role
from hybridiff.runner.job import NOT_CONTENT, Job, image_size, recorded_options
from hybridiff.runner.trainer import lightning_options
from hybridiff.schedule import Sampler
from hybridiff.secrets import redact
from hybridiff.storage.filesystem import is_memory
from hybridiff.storage.lease import check_lease


def prepare(
    config: JobConfig,
    writes: bool = True,
    planned: Launch | None = None,
) -> Job:
    """Checks everything that can be checked without loading a model or making a trainer.

    Nothing is written but copies of large prompt tables, by rank 0, into the corpus, and nothing at all unless ``writes``.

    Args:
        config: all options; the model's dtype may be auto, and is resolved.
        writes: whether the job will write.
        planned: How the job will be started elsewhere, where this is not the job itself.

    Raises:
        UsageError: one line on what was given and what is allowed; the same on every rank.
    """
    launch = check_launch(config.trainer, config.parallel, planned)
    across = config.parallel.across_nodes
    check_world(launch.world_size, config.parallel.group_size, None if across else launch.local_world_size)
    facts = read_facts(config.model)
    config = replace(config, model=replace(config.model, dtype=_dtype(config, planned)))
    check_model(config.model, config.sampling, facts)
    check_schedule(config, facts)
    corpus = Corpus(config.output.url)
    if corpus.creates_if_absent:
        check_lease(corpus, config.data.lease_s)
    check_free(corpus)
    require(not is_memory(corpus.fs), "output.url", corpus.url, "a directory or an fsspec url that lasts")
    settings = row_settings(config, facts, device_name(config.trainer.accelerator))
    role: Role = "alone" if not writes else "lead" if launch.rank == 0 else "follow"
    shard_size = config.output.images_per_shard(*image_size(config.sampling, facts))

    def check_output() -> None:
        """Refuses, before tables are copied, what would be refused after it."""
        corpus.check_configuration(RunRecord(recorded_options(config, facts, settings.revision), {}, NOT_CONTENT))

    plan = make_plan(config.data, config.sampling, shard_size, corpus, role, before_copying=check_output)
    options = lightning_options(config.trainer)
    return Job(config, options, launch, facts, plan, corpus, settings)


def _dtype(config: JobConfig, planned: Launch | None) -> str:
    """The model's dtype; of a job that will start on other machines, the one that its corpus was begun with."""
    dtype = config.model.dtype
    if planned is None or dtype != AUTO:
        return resolve_dtype(dtype, config.trainer.accelerator)
    recorded = Corpus(config.output.url).read_run() or {}
    return str(recorded.get("configuration", {}).get("model", {}).get("dtype", AUTO))


def row_settings(config: JobConfig, facts: ModelFacts, device: str) -> RowSettings:
    """What all rows of a job have alike."""
    return RowSettings(
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
    """How this rank was started, or how the job's will be, which the trainer options must not contradict.

    Raises:
        UsageError: they do, or the ranks do not fit their nodes.
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
    if config.parallel.group_size > 1 and schedule.kinds & SEGMENTED:
        require_class(facts.denoiser)
