"""Images per second of the whole job, and of the bare pipeline loop on the same ranks and prompts, which writes nothing."""

import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from hybridiff.config import DataConfig, JobConfig, ModelConfig, OutputConfig, ParallelConfig, SamplingConfig, TrainerConfig
from hybridiff.images import ImageFormat
from hybridiff.models.load import load_pipeline
from hybridiff.parallel import parallelize
from hybridiff.runner.counts import Stopwatch
from hybridiff.runner.job import Job, prepare
from hybridiff.runner.module import CorpusModule
from hybridiff.runner.run import run
from hybridiff.schedule import make_schedule
from jobs.benchmark.config import CorpusConfig
from jobs.benchmark.corpus.folders import OutputFolder
from jobs.benchmark.ranks import Ranks

PROMPTS = Path(__file__).parents[3] / "hybridiff" / "assets" / "demo-prompts.jsonl"
ROWS = 32
SHARDS = 2  # of each group: the first is committed while the second is generated
TARGET = 0.97  # of the bare loop's images/s


@dataclass(frozen=True)
class RunTimes:
    """One run: seconds of the slowest rank, the longest tail, and CPU seconds of all ranks together."""

    seconds: float
    tail_s: float
    cpu_s: float


@dataclass(frozen=True)
class JobRow:
    """A whole job at one url, in one format.

    Args:
        url: destination.
        image_format: format of the images.
        images: images of all ranks.
        images_per_s: images per second of all ranks, from the first batch to the last commit.
        bare_images_per_s: images per second of the bare pipeline loop.
        ratio: job over bare loop: the median over the rounds.
        cpu_ratio: the bare loop's CPU time per image over the job's: it says more on a machine that others use too.
        tail_s: seconds from the last batch to the last commit.
        rounds: ratio of each measured round.
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


def measure_jobs(
    config: CorpusConfig, folders: list[OutputFolder], temporary: str, ranks: Ranks
) -> Iterator[tuple[tuple[int, str], JobRow]]:
    """Runs the bare loop and the jobs, interleaved; every rank calls it alike and gets the same.

    Yields:
        After each measured round of a folder and format these two, and their row over the rounds so far.

    Raises:
        UsageError: the job cannot be run with these options.
    """
    bare: list[RunTimes] = []
    jobs: dict[tuple[int, str], list[RunTimes]] = {}
    images = ROWS * config.images_per_prompt
    for number in range(config.rounds + 1):
        bare.append(_time_bare(_job(config, f"{temporary}/bare", config.formats[0], ranks, temporary), ranks))
        for index, folder in enumerate(folders):
            for image_format in config.formats:
                url, key = folder.child(f"job-{number}-{image_format}", ranks), (index, image_format)
                jobs.setdefault(key, []).append(_time_job(config, url, image_format, ranks, temporary))
                folder.remove_after_all(url, ranks)
                if number:
                    yield key, _row(folder.label, image_format, images, jobs[key][1:], bare[1:])


def _row(url: str, image_format: str, images: int, jobs: list[RunTimes], bare: list[RunTimes]) -> JobRow:
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


def _job(config: CorpusConfig, url: str, image_format: ImageFormat, ranks: Ranks, temporary: str, stopwatch: Any = None) -> Job:
    size = config.group_size
    shard_size = max(1, ROWS * config.images_per_prompt // (SHARDS * max(1, ranks.size // size)))
    accelerator = "gpu" if config.device == "cuda" else "cpu"
    job = JobConfig(
        ModelConfig(config.model, dtype=config.dtype),
        SamplingConfig(config.steps, height=config.height, width=config.width, images_per_prompt=config.images_per_prompt),
        ParallelConfig(size, make_schedule(config.schedule)),
        DataConfig([str(PROMPTS)], batch_size=config.batch),
        OutputConfig(url, shard_size, image_format=image_format, quality=config.quality),
        trainer=TrainerConfig(accelerator, default_root_dir=temporary, enable_progress_bar=False),
    )
    prepared = prepare(job, writes=stopwatch is not None)
    return replace(prepared, trainer_options=prepared.trainer_options | {"callbacks": [stopwatch] if stopwatch else []})


def _time_job(config: CorpusConfig, url: str, image_format: ImageFormat, ranks: Ranks, temporary: str) -> RunTimes:
    stopwatch = Stopwatch()
    outcome = run(_job(config, url, image_format, ranks, temporary, stopwatch))
    if outcome.signal:  # the job has handled it, and ended early
        raise KeyboardInterrupt
    assert not outcome.lost and not outcome.failed, outcome
    return _together(RunTimes(stopwatch.seconds, stopwatch.tail_s, stopwatch.cpu_s), ranks)


def _together(mine: RunTimes, ranks: Ranks) -> RunTimes:
    every = ranks.gather(mine)
    return RunTimes(max(one.seconds for one in every), max(one.tail_s for one in every), sum(one.cpu_s for one in every))


@torch.inference_mode()
def _time_bare(job: Job, ranks: Ranks) -> RunTimes:
    """Prompts in, images in host memory."""
    config = job.config
    group = ranks.groups({config.parallel.group_size})[config.parallel.group_size]
    module = CorpusModule(config, job.facts)  # for the arguments of the call, without its error handling
    module.pipeline = load_pipeline(config.model, job.facts, ranks.device)
    module.handle = parallelize(module.pipeline, config.parallel.schedule, group.size, group=group)
    shards = range(group.index, job.plan.shards, group.count)
    gc.freeze()  # as the job does
    try:
        ranks.barrier()
        cpu_s, started = time.process_time(), time.perf_counter()
        for shard in shards:
            for samples in job.plan.shard(shard).batches(config.data.batch_size):
                module.decode_own_rows(module.sample(samples))[0].cpu()
        return _together(RunTimes(time.perf_counter() - started, 0.0, time.process_time() - cpu_s), ranks)
    finally:
        module.handle.remove()
        gc.unfreeze()
