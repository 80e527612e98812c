"""``hybridiff generate``: tables of prompts in, a WebDataset and Parquet dataset out. The same command again resumes.

Exit codes: 0 this rank's part is done (with --only: the row is as it was); 1 an error, shards that storage did not take, or with
--only: the row differs; 2 a mistake in what was given; 3 too many rows failed; 85 stopped by SIGTERM, SIGINT or SIGUSR1: run it
again; 130 interrupted at once.
"""

import gc
import os
import signal
import sys

from hybridiff.cli import say
from hybridiff.cluster.exit_codes import AGAIN, DONE, INTERRUPTED


def main(arguments: list[str]) -> int:
    """Parses, checks, runs."""
    parent = os.getppid()  # before the libraries are loaded, meanwhile it may end
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, stop_early)  # until the run begins, which has handlers of its own
    from hybridiff.runner.arguments import parse

    given = parse(arguments)
    from hybridiff.runner import report
    from hybridiff.runner.prepare import prepare
    from hybridiff.runner.run import run

    gc.freeze()  # of what was loaded nothing will go
    gc.enable()
    try:
        writes = not given.dry_run and given.only is None
        job = prepare(given.config, given.trainer, given.trainer_record, writes, None, given.retry_failed, given.force_unlock)
        code = DONE
        if given.only is not None:
            from hybridiff.runner.only import draw_again

            code, lines = draw_again(job, given.only)
        elif given.dry_run:
            lines = report.describe_plan(job) if job.launch.rank == 0 else []
        else:
            code, lines = report.finish(job, run(job, given.retry_failed, given.force_unlock, parent))
    except KeyboardInterrupt:
        say(["generate: interrupted; what is committed stays, and the same command again does the rest"], sys.stderr)
        return INTERRUPTED
    say(lines, sys.stdout)
    return code


def stop_early(number: int, _: object) -> None:
    """Ends a run that has not begun: there is nothing to finish, and the same signal again changes nothing."""
    for stopping in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(stopping, signal.SIG_IGN)
    say([f"generate: stopped by {signal.Signals(number).name} before any image was generated"], sys.stderr)
    sys.exit(AGAIN)
