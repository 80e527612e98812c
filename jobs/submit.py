"""Submits jobs/generate.py to SLURM: plans it, sizes it, and shows how far it is.

    python jobs/submit.py --config mine.yaml --nodes 4 --gpus_per_node 8 --rate 1.2            # what would be submitted
    python jobs/submit.py --config mine.yaml --nodes 4 --gpus_per_node 8 --array --submit      # an array of single nodes
    python jobs/submit.py --config mine.yaml --watch                                           # progress, from the corpus

Options that are not listed by --help are those of jobs/generate.py. Exit codes: 0 done, 2 a mistake in what was given, 130
interrupted, else sbatch's.

submitit is not used: it submits pickled functions under a process of its own, which would stand between SLURM and the
ranks, where their signals and exit code 85 pass, and it asks sacct how a job is doing, where the corpus knows better.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from hybridiff.config import UsageError

if TYPE_CHECKING:
    from hybridiff.lit.run import Job
    from hybridiff.lit.sizing import Size

ROOT = Path(__file__).resolve().parent.parent
LOOK_S = 10.0


def main(arguments: list[str] | None = None) -> int:
    """Parses, plans, and prints, submits or watches."""
    options, passed = _parser().parse_known_args(arguments)
    try:
        return watch(passed, options) if options.watch and not options.submit else submit(passed, options)
    except UsageError as error:
        print(f"submit: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def submit(passed: list[str], options: argparse.Namespace) -> int:
    """Prints the plan and the batch script, or submits it."""
    from hybridiff.lit.sizing import size_job

    job, rate = plan(passed, options)
    ranks = options.ranks_per_node or options.gpus_per_node or 1
    left = sorted(set(range(job.plan.shards)) - job.corpus.committed())
    rows = [job.plan.shard_rows(index) for index in left]
    longest_s = _seconds(options.time)
    size = size_job(rows, options.nodes, ranks // job.config.parallel.group_size, rate, longest_s)
    text = script(passed, options, size, job.corpus.url)
    for line in describe(job, sum(rows), len(left), size, rate):
        print(line, file=sys.stderr)
    if options.write:
        Path(options.write).write_text(text)
    if not options.submit:
        if not options.write:
            print(text, end="")
        return 0
    _refuse_second(job.corpus.url)
    done = subprocess.run(["sbatch", "--parsable"], input=text, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    if done.returncode:
        return done.returncode
    print(done.stdout.strip().split(";")[0])
    return watch(passed, options) if options.watch else 0


def plan(passed: list[str], options: argparse.Namespace) -> "tuple[Job, float | None]":
    """The job as its ranks will see it, checked as they will check it, and the images/s of one group as far as known."""
    from hybridiff.lit import run
    from hybridiff.sinks.progress import read_progress
    from jobs import generate

    given = generate.parse(passed)
    ranks = options.ranks_per_node or options.gpus_per_node or 1
    trainer = given.trainer | {"devices": ranks, "num_nodes": 1 if options.array else options.nodes}
    if options.gpus_per_node:
        from hybridiff.lit.topology import check_gpus

        check_gpus(options.gpus_per_node, ranks, given.config.parallel.group_size, given.config.parallel.leave_idle)
    job = run.prepare(given.config, trainer, given.trainer_record, writes=False)
    job.corpus.check_run(job.record)
    if options.rate is not None or job.corpus.read_run() is None:
        return job, options.rate
    return job, read_progress(job.corpus).group_rate


def script(passed: list[str], options: argparse.Namespace, size: "Size", url: str) -> str:
    """The batch script."""
    from hybridiff.lit.sizing import render, walltime

    wanted = {"time": walltime(size.walltime_s), "comment": f"hybridiff:{url}"}
    wanted |= {"array": f"0-{size.tasks - 1}"} if options.array else {"nodes": str(size.tasks)}
    wanted |= {"gpus-per-node": str(options.gpus_per_node)} if options.gpus_per_node else {}
    wanted |= {name: value for name in ("account", "partition", "qos") if (value := getattr(options, name))}
    template = (ROOT / "slurm" / ("array.sbatch" if options.array else "generate.sbatch")).read_text()
    if not options.gpus_per_node:
        ranks = f"--ntasks-per-node={options.ranks_per_node or 1}"
        template = template.replace("#SBATCH --gpus-per-node=8", f"#SBATCH {ranks}")
    return render(template, wanted, passed)


def describe(job: "Job", rows: int, shards: int, size: "Size", rate: float | None) -> list[str]:
    """The plan in a few lines."""
    from hybridiff.lit.sizing import walltime
    from hybridiff.sinks.progress import span

    estimate = "unknown: give --rate, the images/s of one group" if size.estimate_s is None else span(size.estimate_s)
    again = f", about {size.runs} times, requeued by itself" if size.runs > 1 else ""
    return [
        f"left:     {rows} images in {shards} of {job.plan.shards} shards",
        f"groups:   {size.groups} of {job.config.parallel.group_size} ranks, on {size.tasks} nodes",
        f"estimate: {estimate}" + ("" if rate is None else f", at {rate:.3g} images/s of a group"),
        f"walltime: {walltime(size.walltime_s)}{again}",
    ]


def watch(passed: list[str], options: argparse.Namespace) -> int:
    """Prints how far the corpus is, until it is whole; once, with --once."""
    from hybridiff.sinks.corpus import Corpus
    from hybridiff.sinks.progress import read_progress
    from jobs import generate

    corpus = Corpus(generate.parse(passed).config.output.url)
    shown = ""
    while True:
        try:
            progress = read_progress(corpus)
            line, whole = progress.line(), progress.done == progress.shards
        except UsageError as error:
            if options.once:
                raise
            line, whole = str(error), False
        if line != shown:
            print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
            shown = line
        if whole or options.once:
            return 0
        time.sleep(LOOK_S)


def _refuse_second(url: str) -> None:
    queue = subprocess.run(["squeue", "--noheader", "--format=%A %k"], stdout=subprocess.PIPE, text=True)
    found = [line.split(" ", 1)[0] for line in queue.stdout.splitlines() if line.endswith(f" hybridiff:{url}")]
    if found:
        raise UsageError(f"job {found[0]} in the queue writes to {url}; allowed: one job on a corpus, see scancel {found[0]}")


def _seconds(text: str) -> int:
    from hybridiff.lit.sizing import parse_walltime

    return parse_walltime(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--nodes", type=int, default=1, help="of the job, or tasks of the array; fewer where shards are few")
    parser.add_argument("--gpus_per_node", type=int, default=0, help="GPUs of a node; 0: draw on its CPUs")
    parser.add_argument("--ranks_per_node", type=int, default=0, help="by default one per GPU, or 1")
    parser.add_argument("--array", action="store_true", help="an array of tasks of one node each, not one job over all nodes")
    parser.add_argument("--rate", type=float, help="images/s of one group; by default measured on what is in the corpus")
    parser.add_argument("--time", default="24:00:00", help="the longest walltime allowed, in SLURM's forms (default: 24:00:00)")
    for name in ("account", "partition", "qos"):
        parser.add_argument(f"--{name}", help="SLURM's own")
    parser.add_argument("--write", metavar="FILE", help="where to write the batch script, instead of printing it")
    parser.add_argument("--submit", action="store_true", help="submit it and print the job's number")
    parser.add_argument("--watch", action="store_true", help="show shards done, images/s, failed rows and time left")
    parser.add_argument("--once", action="store_true", help="watch: look once")
    return parser


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
