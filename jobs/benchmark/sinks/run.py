"""One run of the benchmark of the sinks."""

import os

from hybridiff.corpus.background import THREADS
from hybridiff.corpus.writable import check_writable
from jobs.benchmark.sinks.checking import measure_checking
from jobs.benchmark.sinks.config import SinksConfig
from jobs.benchmark.sinks.places import places
from jobs.benchmark.sinks.report import SinksReport
from jobs.benchmark.sinks.whole_job import measure_jobs
from jobs.benchmark.sinks.writing import measure_writing
from jobs.benchmark.world import World


def run_sinks(config: SinksConfig, world: World) -> SinksReport:
    """Measures everything that is asked for; every rank calls it alike, and the first one's report is whole.

    The whole job runs on all ranks; the first one alone writes and verifies, and the others wait.

    Raises:
        UsageError: a url can't be written to, or the job can't be run so.
    """
    cores = len(os.sched_getaffinity(0))
    with places(config, world) as (found, folder):
        for place in found if world.rank == 0 else ():
            check_writable(place.corpus)
        jobs = measure_jobs(config, found, folder, world) if config.images_per_prompt else []
        alone = found if world.rank == 0 else []
        written = measure_writing(config, alone, min(cores, THREADS)) if config.megabytes else []
        checked = measure_checking(config, alone, cores) if config.verified_megabytes else []
        world.barrier()
    return SinksReport(config, world.size, cores, jobs, written, checked)
