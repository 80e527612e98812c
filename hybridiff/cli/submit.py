"""``hybridiff submit``: plans a job for SLURM, sizes it, and prints or runs the call of sbatch.

    hybridiff submit --config mine.yaml --nodes 4 --gpus_per_node 8 --rate 1.2            # the plan, and the exact sbatch command
    hybridiff submit --config mine.yaml --nodes 4 --gpus_per_node 8 --array --submit      # submit an array of single nodes

All other options are those of "hybridiff generate", which the job runs in the working directory, with the python of this command
unless HYBRIDIFF_ENV names another one. "hybridiff status OUTPUT --watch" shows the progress.

Exit codes: 0 done, or nothing is left to generate; 1 an error; 2 a mistake in what was given; 130 interrupted; else sbatch's.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hybridiff.cli import Parser, say, whole
from hybridiff.cli.resources import slurm_script
from hybridiff.cluster.exit_codes import DONE, MISTAKE
from hybridiff.errors import UsageError

if TYPE_CHECKING:
    from hybridiff.cli.config import Arguments
    from hybridiff.runner.job import Job

SLURM_OPTIONS = ("account", "partition", "qos")
WITHOUT_SECTION = ("config", "retry_failed")  # options of "hybridiff generate" that make sense for a job
READING = ("dry_run", "only")  # those that generate nothing


def main(arguments: list[str]) -> int:
    """Plans, and prints the call of sbatch or runs it."""
    if not arguments:
        say([parser().usage_line()], sys.stderr)
        return MISTAKE
    options, passed = parser().parse_known_args(arguments)
    check_options(passed)
    from hybridiff.cli.config import parse
    from hybridiff.cluster import queue
    from hybridiff.cluster.sizing import describe, parse_walltime, size_job

    longest_s = parse_walltime(options.time)
    queue.check_secrets(passed)
    job, rate, left = plan(parse(passed), options)
    if not left:
        say([f"{job.corpus.url} is complete: there is nothing to submit"], sys.stderr)
        return DONE
    ranks, group_size = job.launch.local_world_size, job.config.parallel.group_size
    size = size_job(list(left.values()), options.nodes, max(1, ranks // group_size), rate, longest_s)
    print("\n".join(describe(size, sum(left.values()), (len(left), job.plan.shards), group_size, rate)), file=sys.stderr)
    call = queue.sbatch(
        slurm_script("array.sbatch" if options.array else "generate.sbatch"),
        size,
        job.corpus,
        options.gpus_per_node,
        ranks,
        options.array,
        [*(f"--{name}={value}" for name in SLURM_OPTIONS if (value := getattr(options, name))), *options.sbatch],
        passed,
        own_python(),
    )
    if not options.submit:
        print(call)
        return DONE
    others = queue.queued_jobs(job.corpus)
    if others:
        say([f"job {', '.join(others)} in the queue writes the same output: the jobs share its shards"], sys.stderr)
    code, number = call.submit()
    if code == DONE:
        print(number, flush=True)
        say([f"progress: hybridiff status {job.corpus.url} --watch"], sys.stderr)
    return code


def plan(given: "Arguments", options: argparse.Namespace) -> "tuple[Job, float | None, dict[int, int]]":
    """The job as its ranks will see it and checked as they will check it, images/s of a group if known, and images left by shard.

    Args:
        given: options of ``hybridiff generate``.
        options: options of this command.
    """
    from hybridiff.cli.local_paths import check_paths

    check_paths(given.config)  # before what takes seconds to import
    from hybridiff.cluster.gpus import check_gpus
    from hybridiff.cluster.launch import Launch
    from hybridiff.cluster.sizing import ranks_of_node
    from hybridiff.corpus.progress import read_progress

    parallel = given.config.parallel
    ranks = ranks_of_node(options.gpus_per_node, options.ranks_per_node, parallel)
    if options.gpus_per_node:
        check_gpus(options.gpus_per_node, ranks, parallel.group_size, parallel.leave_idle, "--ranks_per_node")
    if ranks % parallel.group_size and not parallel.across_nodes:
        option = "--ranks_per_node" if options.ranks_per_node else "--gpus_per_node or --ranks_per_node"
        allowed = f"{option} as a multiple of parallel.group_size, which is {parallel.group_size}"
        raise UsageError(f"a node would have {ranks} ranks; allowed: {allowed}")
    from hybridiff.runner.job import prepare

    launch = Launch(0, (1 if options.array else options.nodes) * ranks, ranks)
    job = prepare(given.config, writes=False, planned=launch)
    job.corpus.check_run(job.record)
    started = job.corpus.read_run() is not None
    rate = read_progress(job.corpus).group_rate if options.rate is None and started else options.rate
    return job, rate, failed_rows(job) if given.retry_failed else rows_left(job)


def rows_left(job: "Job") -> dict[int, int]:
    """Rows of each shard that is not committed."""
    return {index: job.plan.shard_rows(index) for index in sorted(set(range(job.plan.shards)) - job.corpus.committed())}


def failed_rows(job: "Job") -> dict[int, int]:
    """Failed rows of each committed shard that has any."""
    from hybridiff.storage.folder import read_each

    markers = read_each(job.corpus.read_marker, sorted(job.corpus.committed()))
    return {index: marker["failed"] for index, marker in markers.items() if marker["failed"]}


def check_options(passed: list[str]) -> None:
    """Refuses options that neither this command has nor, as far as names without a section go, ``hybridiff generate``.

    Raises:
        UsageError: naming the option that was meant.
    """
    for word in passed:
        name = word.removeprefix("--").partition("=")[0]
        if word in ("", "--") or not word.startswith("--") or "." in name or name in WITHOUT_SECTION:
            continue
        if name in READING:
            raise UsageError(f"--{name} generates nothing, and a job does; allowed: hybridiff generate --{name}")
        others = ", and options of hybridiff generate such as --data.prompts"
        raise UsageError(parser().unknown_option(word, WITHOUT_SECTION, others))


def own_python() -> str | None:
    """The environment that this command runs in, for the job; None where HYBRIDIFF_ENV says another one."""
    there = (Path(sys.prefix) / "bin" / "python").exists()
    return sys.prefix if there and not os.environ.get("HYBRIDIFF_ENV") else None


def parser() -> Parser:
    """The parser of the options that are not those of ``hybridiff generate``."""
    found = Parser("submit", __doc__)
    found.add_argument("--nodes", type=whole(1), default=1, metavar="N", help="nodes of the job, or tasks of the array; at most")
    found.add_argument("--gpus_per_node", type=whole(0), default=0, metavar="N", help="GPUs of a node; 0: use its CPUs (default)")
    found.add_argument("--ranks_per_node", type=whole(1), default=0, metavar="N", help="by default one per GPU, or 1")
    found.add_argument("--array", action="store_true", help="an array of single nodes, instead of one job over all nodes")
    found.add_argument("--rate", type=_rate, metavar="X", help="images/s of one group; by default as measured in the output")
    found.add_argument("--time", default="24:00:00", help="longest walltime, in SLURM's forms (default: 24:00:00)")
    for name in SLURM_OPTIONS:
        found.add_argument(f"--{name}", help=f"SLURM's --{name}")
    found.add_argument("--sbatch", action="append", default=[], metavar="OPTION", help="any option of sbatch, --sbatch=--mem=0")
    found.add_argument(
        "--submit", action="store_true", help="run sbatch and print the job's number, instead of printing the call"
    )
    found.takes_job()
    return found


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise argparse.ArgumentTypeError(f"is {text!r}; allowed: more than 0 images/s of one group")
    return rate
