"""Submits hybridiff generate to SLURM: plans it, sizes it, and shows how far it is.

    hybridiff submit --config mine.yaml --nodes 4 --gpus_per_node 8 --rate 1.2            # what would be submitted
    hybridiff submit --config mine.yaml --nodes 4 --gpus_per_node 8 --array --submit      # an array of single nodes
    hybridiff submit --config mine.yaml --watch                                           # progress, from the corpus

Options that are not listed by --help are those of hybridiff generate. Exit codes: 0 done; 1 an error, or with --watch: the job is
over and shards are left, or they are damaged; 2 a mistake in what was given; 130 interrupted; else sbatch's.
"""

import argparse
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hybridiff.errors import UsageError
from hybridiff.secrets import redact

if TYPE_CHECKING:
    from hybridiff.runner.job import Job

ROOT = Path(__file__).resolve().parents[2]
LOOK_S = 10.0
FORMAT = argparse.RawDescriptionHelpFormatter
OWN = ("account", "partition", "qos")


def main(given: list[str]) -> int:
    """Parses, plans, and prints, submits or watches."""
    options, passed = parser().parse_known_args(given)
    try:
        return watch(passed, options) if options.watch and not options.submit else submit(passed, options)
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # storage clients raise types of their own
        mistake = isinstance(error, UsageError)
        text = " ".join((str(error) if mistake else f"{type(error).__name__}: {error}").split())
        print(f"submit: error: {redact(text)}", file=sys.stderr)
        return 2 if mistake else 1


def submit(passed: list[str], options: argparse.Namespace) -> int:
    """Prints the plan and the batch script, or submits it."""
    from hybridiff.cluster import queue
    from hybridiff.cluster.batch_script import check_secrets, write_script
    from hybridiff.cluster.sizing import describe, parse_walltime, size_job

    if Path.cwd() != ROOT:  # the job runs in the checkout, where relative paths would be other files
        raise UsageError(f"the working directory is {Path.cwd()}; allowed: the checkout, cd {ROOT}")
    check_secrets(passed)
    job, rate = plan(passed, options)
    left = sorted(set(range(job.plan.shards)) - job.corpus.committed())
    rows = [job.plan.shard_rows(index) for index in left]
    ranks, group_size = job.launch.local_world_size, job.config.parallel.group_size
    size = size_job(rows, options.nodes, max(1, ranks // group_size), rate, parse_walltime(options.time))
    for line in describe(size, sum(rows), (len(left), job.plan.shards), group_size, rate):
        print(line, file=sys.stderr)
    template = (ROOT / "slurm" / ("array.sbatch" if options.array else "generate.sbatch")).read_text()
    own = {name: value for name in OWN if (value := getattr(options, name))}
    text = write_script(template, passed, size, job.corpus, options.gpus_per_node, ranks, options.array, own)
    if options.write:
        Path(options.write).write_text(text)
    if not options.submit:
        if not options.write:
            print(text, end="")
        return 0
    code, number = queue.submit(text, job.corpus, ROOT)
    if code:
        return code
    print(number, flush=True)
    return watch(passed, options) if options.watch else 0


def plan(passed: list[str], options: argparse.Namespace) -> "tuple[Job, float | None]":
    """The job as its ranks will see it, checked as they will check it, and the images/s of one group as far as known."""
    from hybridiff.cluster.gpus import check_gpus
    from hybridiff.cluster.launch import Launch
    from hybridiff.cluster.sizing import ranks_of_node
    from hybridiff.corpus.progress import read_progress
    from hybridiff.runner.arguments import parse
    from hybridiff.runner.prepare import prepare

    given = parse(passed)
    ranks = ranks_of_node(options.gpus_per_node, options.ranks_per_node, given.config.parallel)
    if options.gpus_per_node:
        check_gpus(options.gpus_per_node, ranks, given.config.parallel.group_size, given.config.parallel.leave_idle)
    nodes = 1 if options.array else options.nodes
    job = prepare(given.config, given.trainer, given.trainer_record, writes=False, planned=Launch(0, nodes * ranks, ranks))
    job.corpus.check_run(job.record)
    if options.rate is not None or job.corpus.read_run() is None:
        return job, options.rate
    return job, read_progress(job.corpus).group_rate


def watch(passed: list[str], options: argparse.Namespace) -> int:
    """Prints how far the corpus is, until it is whole or nobody works on it any more; once, with --once."""
    from hybridiff.cluster import queue
    from hybridiff.corpus.corpus import Corpus
    from hybridiff.corpus.progress import Seen, read_progress
    from hybridiff.runner.arguments import parse

    corpus = Corpus(parse(passed).config.output.url)
    seen, shown, over = Seen(), "", False
    while True:
        try:
            progress = read_progress(corpus, seen)
            line, whole, stuck = progress.line(), progress.whole, progress.stuck
        except Exception as error:  # no job has begun, or storage is away for a while
            if options.once:
                raise
            line, whole, stuck = redact(" ".join(str(error).split())), False, False
        stuck = stuck and line == shown  # not only in the moment in which a marker is being written
        if line != shown:
            print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
            shown = line
        if whole or options.once:
            return 0
        if stuck:
            return 1
        if over:  # also before this look
            print("no job works on it any more; submit the same again for what is left", flush=True)
            return 1
        with suppress(Exception):
            over = queue.over(corpus)
        time.sleep(LOOK_S)


def parser() -> argparse.ArgumentParser:
    """Of the options that are not hybridiff generate's."""
    found = argparse.ArgumentParser(
        prog="hybridiff submit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    found.add_argument("--nodes", type=int, default=1, help="of the job, or tasks of the array; fewer where shards are few")
    found.add_argument("--gpus_per_node", type=int, default=0, help="GPUs of a node; 0: draw on its CPUs")
    found.add_argument("--ranks_per_node", type=int, default=0, help="by default one per GPU, or 1")
    found.add_argument("--array", action="store_true", help="an array of tasks of one node each, not one job over all nodes")
    found.add_argument("--rate", type=float, help="images/s of one group; by default measured on what is in the corpus")
    found.add_argument("--time", default="24:00:00", help="the longest walltime allowed, in SLURM's forms (default: 24:00:00)")
    for name in OWN:
        found.add_argument(f"--{name}", help="SLURM's own")
    found.add_argument("--write", metavar="FILE", help="where to write the batch script, instead of printing it")
    found.add_argument("--submit", action="store_true", help="submit it and print the job's number")
    found.add_argument("--watch", action="store_true", help="show shards done, images/s, failed rows and time left")
    found.add_argument("--once", action="store_true", help="watch: look once")
    return found
