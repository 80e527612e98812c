"""What the command prints: the plan before a run, the summary after it."""

from hybridiff.cluster.exit_codes import DONE, NOT_DONE
from hybridiff.cluster.launch import detect_batch_job, has_parent
from hybridiff.corpus.card import finished, write_card
from hybridiff.corpus.reader import ShardDamaged
from hybridiff.errors import amount
from hybridiff.runner.job import Job, image_size
from hybridiff.runner.run import Outcome


def describe_plan(job: Job) -> list[str]:
    """The plan, a line each: rows, shards, groups, committed shards, and the size of the corpus.

    Raises:
        UsageError: the output holds a corpus of another configuration.
    """
    config, plan = job.config, job.plan
    job.corpus.check_run(job.record)
    done = job.corpus.committed()
    width, height = image_size(config.sampling, job.facts)
    copies = 1 + config.output.embed_images
    bytes_estimated = copies * plan.rows * height * width * config.output.encoder.bytes_per_pixel
    network = f"{job.facts.pipeline}, {job.run_values['scheduler']}, {config.model.dtype}"
    sampling, steps = config.sampling, amount(config.sampling.steps, "step")
    lines = {
        "rows": f"{amount(plan.rows, 'image')} of {width} x {height} pixels",
        "shards": f"{plan.shards} of {amount(config.output.images_per_shard(width, height), 'image')}",
        "groups": f"{job.launch.world_size // config.parallel.group_size} of {amount(config.parallel.group_size, 'rank')}",
        "done": f"{len(done)} of {amount(plan.shards, 'shard')}",
        "model": f"{config.model.path} ({network}), {job.run_values['revision']}",
        "sampling": f"{steps}, guidance {sampling.guidance_scale}, schedule {config.parallel.schedule.name}",
        "output": f"{job.corpus.url}, about {_readable(bytes_estimated)} (photographs; flat images take less)",
    }
    noted = [*lines.items(), *(("note", notice) for notice in plan.notices())]
    return [f"{name + ':':10}{text}" for name, text in noted]


def describe_finished(job: Job) -> tuple[int, list[str]] | None:
    """Exit code and summary where all shards are committed, without starting a run; None where some may be left.

    None also for ranks of a launcher, each of which would list the markers at another moment; the run finds out.

    Raises:
        UsageError: the output holds a corpus of another configuration.
    """
    if job.launch.world_size > 1 and (has_parent() or detect_batch_job().id is not None):
        return None
    if job.corpus.read_run() is None:
        return None
    job.corpus.check_run(job.record)
    if len(job.corpus.committed()) < job.plan.shards:
        return None
    return finish(job, Outcome(nothing_left=True))


def finish(job: Job, outcome: Outcome) -> tuple[int, list[str]]:
    """Completes the corpus if its last shard is committed.

    Args:
        job: checked job.
        outcome: how the run ended on this rank.

    Returns:
        Exit code, and the summary, a line each.
    """
    if outcome.quiet:
        return DONE, []
    corpus, plan = job.corpus, job.plan
    first_of_all, leader = job.launch.rank == 0, job.launch.rank % job.config.parallel.group_size == 0
    together = outcome.counts is not None and outcome.counts.ranks == job.launch.world_size
    lines = outcome.lines() if leader else []
    if first_of_all and outcome.nothing_left:
        committed_all = "the only shard is committed" if plan.shards == 1 else f"all {plan.shards} shards are committed"
        lines.append(f"nothing left:  {'no failed row' if outcome.tries_all else committed_all}")
    if first_of_all and outcome.counts is not None and outcome.counts.images:
        lines.append(f"generated:     {outcome.counts.line()}")
    if not first_of_all and (together or not (leader and outcome.had_shards)):  # the first rank reports for all
        return outcome.code, lines
    committed = corpus.committed()
    if len(committed) < plan.shards:
        left = f"shards left:   {plan.shards - len(committed)}, by other groups or the next run"
        return outcome.code or outcome.code_if_left, [*lines, *([f"corpus:        {corpus.url}", left] if first_of_all else [])]
    if not first_of_all and finished(corpus):  # by another group, after the last commit, which reports it
        return outcome.code, lines
    try:
        totals = write_card(corpus)
    except ShardDamaged as damage:
        return outcome.code or NOT_DONE, [*lines, f"the corpus is not whole: {damage}"]
    assert totals is not None, "every shard is committed"
    return outcome.code, [
        *lines,
        f"corpus:        {corpus.url}",
        f"images:        {totals['ok']}" + (f", and {amount(totals['failed'], 'failed row')}" if totals["failed"] else ""),
        f"contact sheet: {corpus.url.rstrip('/')}/contact-sheet.png",
        *(f"note:          {notice}" for notice in plan.notices()),
    ]


def _readable(number: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            break
        number /= 1000
    return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
