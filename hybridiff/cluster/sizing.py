"""How large a SLURM job should be: nodes, walltime, and how often it runs."""

import math
from dataclasses import dataclass

from hybridiff.config import ParallelConfig
from hybridiff.corpus.progress import span
from hybridiff.errors import UsageError, amount, require

START_S = 300.0  # loading the model, on busy storage, in each run
LEAD_S = 210.0  # a run starts no shard after the warning of --signal, 180 s before its end or half a minute sooner
MARGIN = 1.25  # of the walltime over the estimate
STEP_S = 15 * 60  # walltimes are multiples of it


@dataclass(frozen=True)
class Size:
    """What a job asks for.

    Args:
        tasks: nodes of one job, or tasks of an array of single nodes.
        groups: number of groups over all of them.
        estimate_s: seconds that the rest takes, with loading of the model in each run; None without a rate.
        walltime_s: seconds of one run.
        runs: how often the job runs until it is done, requeued by itself; 1 without a rate.
    """

    tasks: int
    groups: int
    estimate_s: float | None
    walltime_s: int
    runs: int


def size_job(rows: list[int], nodes: int, groups_per_node: int, rate: float | None, longest_s: int) -> Size:
    """Sizes a job.

    Args:
        rows: images in each shard that is left.
        nodes: largest number of nodes; fewer where some would have no shard for each of their groups.
        groups_per_node: number of groups of a node.
        rate: images/s of one group; None if unknown.
        longest_s: longest walltime in seconds, used where there is no rate.
    """
    require(nodes >= 1, "nodes", nodes, "1 or more")
    require(rate is None or rate > 0, "rate", rate, "more than 0 images/s of one group")
    require(longest_s >= STEP_S, "time", longest_s, f"{STEP_S} seconds or more")
    tasks = max(1, min(nodes, math.ceil(len(rows) / groups_per_node)))
    groups = tasks * groups_per_node
    if rate is None:
        return Size(tasks, groups, None, longest_s, 1)
    generating_s = max((sum(rows[first::groups]) for first in range(groups)), default=0) / rate
    wanted = math.ceil(((START_S + generating_s) * MARGIN + LEAD_S) / STEP_S) * STEP_S
    if wanted <= longest_s:
        return Size(tasks, groups, START_S + generating_s, wanted, 1)
    runs = math.ceil(generating_s * MARGIN / (longest_s - LEAD_S - START_S * MARGIN))
    return Size(tasks, groups, runs * START_S + generating_s, longest_s, runs)


def ranks_of_node(gpus: int, ranks: int, parallel: ParallelConfig) -> int:
    """Ranks of a node: as given, else one per GPU, of which some may be left idle, else 1; 0 stands for what was not given."""
    idle = gpus % parallel.group_size if parallel.leave_idle else 0
    return ranks or gpus - idle or gpus or 1


def describe(size: Size, images: int, shards: tuple[int, int], group_size: int, rate: float | None) -> list[str]:
    """The plan in a few lines.

    Args:
        images: number of images that are left.
        shards: number of shards that are left, and of all.
        group_size: ranks of a group.
        rate: images/s of one group; None if unknown.
    """
    estimate = "unknown: give --rate, the images/s of one group" if size.estimate_s is None else span(size.estimate_s)
    again = f", about {size.runs} times, requeued by itself" if size.runs > 1 else ""
    return [
        f"left:     {amount(images, 'image')} in {shards[0]} of {shards[1]} shards",
        f"groups:   {size.groups} of {amount(group_size, 'rank')}, on {amount(size.tasks, 'node')}",
        f"estimate: {estimate}" + ("" if rate is None else f", at {rate:.3g} images/s of a group"),
        f"walltime: {walltime(size.walltime_s)}{again}",
    ]


def walltime(seconds: int) -> str:
    """A walltime as SLURM writes it: hours:minutes:seconds."""
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def parse_walltime(text: str) -> int:
    """Seconds of a walltime in SLURM's forms: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]].

    Raises:
        UsageError: it is none of them.
    """
    days, dash, clock = text.rpartition("-")
    words = clock.split(":")
    if not all(word.isdigit() for word in [*words, *([days] if dash else [])]) or len(words) > 3:
        raise UsageError(f"time is {text!r}; allowed: minutes, hours:minutes:seconds, days-hours or days-hours:minutes:seconds")
    numbers = [int(word) for word in words]
    if dash:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
        return int(days) * 86400 + hours * 3600 + minutes * 60 + seconds
    hours, minutes, seconds = (0, *numbers, 0) if len(numbers) == 1 else (0, *numbers) if len(numbers) == 2 else tuple(numbers)
    return hours * 3600 + minutes * 60 + seconds
