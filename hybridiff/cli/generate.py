"""``hybridiff generate``: tables of prompts in, a WebDataset and Parquet dataset out. The same command again resumes.

Exit codes: 0 this rank's part is done (with --only: the row is as it was); 1 an error, shards that storage did not take, or with
--only: the row differs; 2 a mistake in what was given; 3 too many rows failed; 85 stopped by SIGTERM, SIGINT or SIGUSR1: run it
again; 130 interrupted at once.
"""

import gc
import os
import sys

from hybridiff.cli import say
from hybridiff.cluster.exit_codes import DONE, INTERRUPTED
from hybridiff.cluster.signals import RESUMABLE, ExitSignals, ignore_signals


def main(arguments: list[str]) -> int:
    """Parses, checks, runs."""
    parent = os.getppid()  # before the libraries are loaded, meanwhile it may end
    signals = ExitSignals(lambda line: say([f"generate: {line}"], sys.stderr))
    signals.install()
    from hybridiff.runner.arguments import parse

    given = parse(arguments)
    from hybridiff.runner import report
    from hybridiff.runner.prepare import prepare
    from hybridiff.runner.run import run

    gc.freeze()  # of what was loaded nothing will go
    gc.enable()
    try:
        writes = not given.dry_run and given.only is None
        job = prepare(given.config, given.trainer, given.trainer_record, writes)
        code = DONE
        if given.only is not None:
            from hybridiff.runner.only import draw_again

            code, lines = draw_again(job, given.only)
        elif given.dry_run:
            lines = report.describe_plan(job) if job.launch.rank == 0 else []
        else:
            signals.running = True
            code, lines = report.finish(job, run(job, given.retry_failed, parent))
    except KeyboardInterrupt:
        say([f"generate: interrupted; {RESUMABLE}"], sys.stderr)
        return INTERRUPTED
    ignore_signals()
    say(lines, sys.stdout)
    return code
