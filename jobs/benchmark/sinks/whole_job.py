"""Images per second of the whole job, and of the bare pipeline loop on the same ranks and prompts, which writes nothing."""

import gc
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from hybridiff.config import DataConfig, JobConfig, ModelConfig, OutputConfig, ParallelConfig, SamplingConfig, TrainerConfig
from hybridiff.models.load import load_pipeline
from hybridiff.parallel import parallelize
from hybridiff.runner.job import Job
from hybridiff.runner.module import CorpusModule
from hybridiff.runner.prepare import prepare
from hybridiff.runner.run import run
from hybridiff.runner.stopwatch import Stopwatch
from hybridiff.schedule import make_schedule
from jobs.benchmark.sinks.config import SinksConfig
from jobs.benchmark.sinks.places import Place
from jobs.benchmark.world import World

PROMPTS = Path(__file__).parents[2] / "assets" / "demo-prompts.jsonl"
ROWS = 32
SHARDS = 2  # of each group: the first is committed while the second is drawn
BAR = 0.97  # of the bare loop's images/s


@dataclass(frozen=True)
class Taken:
    """Of one run: seconds of the slowest rank, the longest tail, and seconds of CPU of all ranks together."""

    seconds: float
    tail_s: float
    cpu_s: float


@dataclass(frozen=True)
class JobRow:
    """A whole job at one url, in one format.

    Args:
        url: Where it wrote.
        image_format: Of its images.
        images: Of all ranks.
        images_per_s: Of all ranks, from the first batch to the last commit.
        bare_images_per_s: Of the bare pipeline loop.
        ratio: Of the two: the median over the rounds.
        cpu_ratio: Of the two's CPU time per image, the bare loop's first: it says more where others use the machine too.
        tail_s: After the last batch, until the last commit.
        rounds: Ratios of those that count.
    """

    url: str
    image_format: str
    images: int
    images_per_s: float
    bare_images_per_s: float
    ratio: float
    cpu_ratio: float
    tail_s: float
    rounds: list[float]


def measure_jobs(config: SinksConfig, places: list[Place], folder: str, world: World) -> list[JobRow]:
    """Runs the loop and the jobs, in turn; every rank calls it alike and gets the same rows.

    Raises:
        UsageError: the job can't be run so.
    """
    bare: list[Taken] = []
    taken: dict[tuple[int, str], list[Taken]] = {}
    images = ROWS * config.images_per_prompt
    for number in range(config.rounds + 1):
        bare.append(_time_bare(_job(config, f"{folder}/bare", config.formats[0], world, folder), world))
        for index, place in enumerate(places):
            for image_format in config.formats:
                url = place.folder(f"job-{number}-{image_format}", world)
                taken.setdefault((index, image_format), []).append(_time_job(config, url, image_format, world, folder))
                place.remove(url, world)
    return [_row(places[index].shown, name, images, times[1:], bare[1:]) for (index, name), times in taken.items()]


def _row(url: str, image_format: str, images: int, jobs: list[Taken], bare: list[Taken]) -> JobRow:
    ratios = [alone.seconds / whole.seconds for whole, alone in zip(jobs, bare, strict=True)]
    return JobRow(
        url=url,
        image_format=image_format,
        images=images,
        images_per_s=images / median(one.seconds for one in jobs),
        bare_images_per_s=images / median(one.seconds for one in bare),
        ratio=median(ratios),
        cpu_ratio=median(alone.cpu_s / whole.cpu_s for whole, alone in zip(jobs, bare, strict=True)),
        tail_s=median(one.tail_s for one in jobs),
        rounds=ratios,
    )


def _job(config: SinksConfig, url: str, image_format: str, world: World, folder: str, stopwatch: Any = None) -> Job:
    size = config.group_size
    shard_size = max(1, ROWS * config.images_per_prompt // (SHARDS * max(1, world.size // size)))
    accelerator = "gpu" if config.device == "cuda" else "cpu"
    job = JobConfig(
        ModelConfig(config.model, dtype=config.dtype),
        SamplingConfig(config.steps, height=config.height, width=config.width, images_per_prompt=config.images_per_prompt),
        ParallelConfig(size, make_schedule(config.schedule)),
        DataConfig([str(PROMPTS)], batch_size=config.batch),
        OutputConfig(url, shard_size, image_format=image_format, quality=config.quality),
        trainer=TrainerConfig(accelerator, default_root_dir=folder, enable_progress_bar=False),
    )
    prepared = prepare(job, writes=stopwatch is not None)
    return replace(prepared, trainer_options=prepared.trainer_options | {"callbacks": [stopwatch] if stopwatch else []})


def _time_job(config: SinksConfig, url: str, image_format: str, world: World, folder: str) -> Taken:
    stopwatch = Stopwatch()
    outcome = run(_job(config, url, image_format, world, folder, stopwatch))
    if outcome.signal:  # it has heard of it, and ended early
        raise KeyboardInterrupt
    assert not outcome.lost and not outcome.failed, outcome
    return _together(Taken(stopwatch.seconds, stopwatch.tail_s, stopwatch.cpu_s), world)


def _together(mine: Taken, world: World) -> Taken:
    ranks = world.gather(mine)
    return Taken(max(one.seconds for one in ranks), max(one.tail_s for one in ranks), sum(one.cpu_s for one in ranks))


@torch.inference_mode()
def _time_bare(job: Job, world: World) -> Taken:
    """Prompts in, pictures in host memory."""
    config = job.config
    group = world.groups({config.parallel.group_size})[config.parallel.group_size]
    module = CorpusModule(config, job.facts)  # for the call's arguments; nothing guards it here
    module.pipeline = load_pipeline(config.model, job.facts, world.device)
    module.handle = parallelize(module.pipeline, config.parallel.schedule, group.size, group=group)
    shards = range(group.index, job.plan.shards, group.count)
    gc.freeze()  # as the job does
    try:
        world.barrier()
        cpu_s, started = time.process_time(), time.perf_counter()
        for shard in shards:
            for samples in job.plan.shard(shard).batches(config.data.batch_size):
                module.decode_share(module.sample(samples))[0].cpu()
        return _together(Taken(time.perf_counter() - started, 0.0, time.process_time() - cpu_s), world)
    finally:
        module.handle.remove()
        gc.unfreeze()
