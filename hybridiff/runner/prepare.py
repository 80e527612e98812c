"""Preparing a job: everything is checked before anything is loaded."""

import json
from typing import Any

from hybridiff import __version__
from hybridiff.cluster.gpus import check_node, device_name
from hybridiff.cluster.launch import Launch, check_asked, detect_launch
from hybridiff.config import JobConfig, ParallelConfig
from hybridiff.corpus.claim_files import check_lease, check_place
from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.record import RunRecord
from hybridiff.corpus.writable import check_free
from hybridiff.errors import UsageError, require
from hybridiff.models.cuts.plans import require_class
from hybridiff.models.facts import ModelFacts, check_model, read_facts, scheduler_class, weights_revision
from hybridiff.parallel.layout import SEGMENTED
from hybridiff.parallel.mesh import check_world
from hybridiff.prompts.plan import make_plan
from hybridiff.prompts.store import Role
from hybridiff.runner.job import NOT_CONTENT, Job, carried, image_size, recorded_options
from hybridiff.runner.taking import run_lock, shares
from hybridiff.schedule import Sampler, make_schedule
from hybridiff.secrets import redact
from hybridiff.storage.protocols import is_memory


def prepare(
    config: JobConfig,
    trainer_options: dict[str, Any],
    trainer_record: dict[str, Any],
    writes: bool = True,
    planned: Launch | None = None,
    retry_failed: bool = False,
    force_unlock: bool = False,
) -> Job:
    """Checks everything that can be checked without loading a model or making a trainer.

    Nothing is written but copies of large prompt tables, by rank 0, into the corpus, and nothing at all unless ``writes``.

    Args:
        planned: How the job will be started elsewhere, where this is not the job itself.
        retry_failed: Whether failed rows are to be drawn again.
        force_unlock: Whether the output may be taken over from another run.

    Raises:
        UsageError: one line on what was given and what is allowed; the same on every rank.
    """
    launch = check_launch(trainer_options, config.parallel, planned)
    across = config.parallel.across_nodes
    check_world(launch.world_size, config.parallel.group_size, None if across else launch.local_world_size)
    facts = read_facts(config.model)
    check_model(config.model, config.sampling, facts)
    check_schedule(config, facts)
    corpus = Corpus(config.output.url)
    if shares(config, retry_failed):
        check_place(corpus)
        check_lease(corpus, config.data.lease_s)
    check_free(corpus)
    require(not is_memory(corpus.fs), "output.url", corpus.url, "a directory or an fsspec url that lasts")
    values = run_values(config, facts, device_name(trainer_options.get("accelerator") or "auto"))
    role: Role = "alone" if not writes else "lead" if launch.rank == 0 else "follow"
    shard_size = config.output.images_per_shard(*image_size(config.sampling, facts))

    def check_output() -> None:
        """Refuses, before tables are copied, what would be refused after it."""
        corpus.check_configuration(RunRecord(recorded_options(config, facts, values["revision"]), {}, NOT_CONTENT))
        if role == "lead":
            run_lock(config, corpus, force_unlock).check(alone=not shares(config, retry_failed))

    plan = make_plan(config.data, config.sampling, shard_size, corpus, role, before_copying=check_output)
    carried(plan.user_schema, config.output.columns)
    return Job(config, trainer_options, trainer_record, launch, facts, plan, corpus, values)


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
        schedule=config.parallel.schedule,
        schedule_options=json.dumps(config.schedule.given()),
    )


def check_launch(trainer_options: dict[str, Any], parallel: ParallelConfig, planned: Launch | None) -> Launch:
    """How this rank was started, or how the job's will be, which the trainer options must not contradict.

    Raises:
        UsageError: they do, or the ranks do not fit their nodes.
    """
    devices, nodes = trainer_options.get("devices", "auto"), int(trainer_options.get("num_nodes") or 1)
    if planned is not None:
        check_asked(devices, nodes, planned)
        return planned
    launch = detect_launch(devices, nodes)
    check_node(launch, parallel, trainer_options.get("accelerator", "auto"))
    return launch


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
