"""``hybridiff generate``: tables of prompts in, a corpus as WebDataset and Parquet out. The same command again resumes.

Exit codes: 0 this rank's part is done (with --only: the row is as it was); 1 an error, shards that storage did not take, or with
--only: the row differs; 2 a mistake in what was given; 3 too many rows failed; 85 stopped by SIGTERM, SIGINT or SIGUSR1: run it
again; 130 interrupted at once.
"""

import gc
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hybridiff.cli import say
from hybridiff.cluster.exit_codes import MISTAKE
from hybridiff.cluster.launch import launching_process, restoring_launcher_variables
from hybridiff.cluster.signals import RESUMABLE, ExitSignals
from hybridiff.config import JobConfig

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from hybridiff.cli.config import Arguments


@dataclass(frozen=True)
class Generated:
    """What ``generate`` has done.

    Args:
        code: exit code that the command would have had: 0 if all is done.
        url: directory of the corpus.
        lines: summary, as the command prints it.
    """

    code: int
    url: str
    lines: tuple[str, ...]


def main(arguments: list[str]) -> int:
    """Parses, checks, runs."""
    launcher = launching_process()  # before the libraries are loaded, meanwhile it may end
    with ExitSignals(lambda line: say([f"generate: {line}"], sys.stderr)) as signals:
        from hybridiff.cli.config import USAGE, parse
        from hybridiff.cli.local_paths import check_paths

        if not arguments:
            say([f"usage: {USAGE}"], sys.stderr)
            return MISTAKE
        given = parse(arguments)
        check_paths(given.config)
        code, lines = _execute(given, signals, launcher)
    say(lines, sys.stdout)
    return code


def generate(
    config: Mapping[str, Any] | JobConfig | str | None = None, *, callbacks: Sequence[Any] = (), **sections: Mapping[str, Any]
) -> Generated:
    """Generates a corpus, as the command does.

    Args:
        config: options as a YAML file nests them, or the name of a shipped configuration or of a YAML file.
        callbacks: Lightning callbacks, in addition to those of ``trainer.callbacks``.
        sections: options by section, which win: ``model={"path": "shapes-xl"}``; ``data={"prompts": ...}`` takes own sources too.

    Raises:
        UsageError: a mistake in the options, before a model is loaded or anything is written.
    """
    from hybridiff.cli.config import from_mapping
    from hybridiff.runner import summary
    from hybridiff.runner.job import prepare
    from hybridiff.runner.run import run
    from hybridiff.runner.trainer import closing_process_group, require_callbacks

    options = config if isinstance(config, JobConfig) and not sections else from_mapping(config, sections)
    require_callbacks(callbacks)
    job = prepare(options)
    own = [*job.trainer_options["callbacks"], *callbacks]
    job = replace(job, trainer_options=job.trainer_options | {"callbacks": own})
    # other ranks may still use their process group
    with restoring_launcher_variables(), closing_process_group() if job.launch.world_size == 1 else nullcontext():
        code, lines = summary.finish(job, run(job))
    return Generated(code, job.corpus.url, tuple(lines))


def parser() -> "ArgumentParser":
    """The parser of all options."""
    from hybridiff.cli import config

    return config.parser()


def _execute(given: "Arguments", signals: ExitSignals, launcher: int | None) -> tuple[int, list[str]]:
    """Prepares the job and does what the flags ask for; exit code and lines for standard output."""
    from hybridiff.corpus.writable import check_could_be_written
    from hybridiff.runner import summary
    from hybridiff.runner.job import prepare
    from hybridiff.runner.run import run
    from hybridiff.runner.trainer import build_trainer

    gc.freeze()  # of what was loaded nothing will go
    gc.enable()
    job = prepare(given.config, writes=not given.dry_run and given.only is None)
    if given.only is not None:
        from hybridiff.runner.regenerate import regenerate

        return regenerate(job, given.only)
    if given.dry_run:
        build_trainer(job.trainer_options, job.config.parallel, job.launch, [])  # refused here as in a run
        lines = summary.describe_plan(job) if job.launch.rank == 0 else []
        check_could_be_written(job.corpus)
        return 0, lines
    if not given.retry_failed and (finished := summary.describe_finished(job)):
        return finished
    signals.words = f"; {RESUMABLE}"
    return summary.finish(job, run(job, given.retry_failed, launcher))
