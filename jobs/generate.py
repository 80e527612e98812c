"""The main job: a table of prompts in, a WebDataset and Parquet corpus out.

    python jobs/generate.py --config configs/demo.yaml
    torchrun --standalone --nproc-per-node 2 jobs/generate.py --config configs/demo.yaml --parallel.group_size 2
    python jobs/generate.py --config configs/demo.yaml --only demo-prompts-00000003

The same command again does what is left; with --only it draws one row again and compares it. Exit codes: 0 this rank's part
is done (with --only: the row is as it was); 1 an error, shards that storage did not take, or with --only: it differs; 2 a
mistake in what was given; 3 too many rows failed; 85 stopped by SIGTERM, SIGINT or SIGUSR1, run it again; 130 interrupted at
once.
"""

import atexit
import gc
import logging
import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn, TextIO

from hybridiff.cluster.exit_codes import AGAIN, DONE, INTERRUPTED, MISTAKE, NOT_DONE
from hybridiff.errors import UsageError
from hybridiff.secrets import hide, known_secrets, report_crash


def main() -> int:
    """Parses, checks, runs."""
    parent = os.getppid()  # before the libraries are loaded, meanwhile it may end
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, leave)  # until the run begins, which has handlers of its own
    try:
        from hybridiff.runner.arguments import parse

        arguments = parse(sys.argv[1:])
        from hybridiff.runner import report
        from hybridiff.runner.prepare import prepare
        from hybridiff.runner.run import run

        gc.freeze()  # of what was loaded nothing will go
        gc.enable()
        writes = not arguments.dry_run and arguments.only is None
        job = prepare(
            arguments.config,
            arguments.trainer,
            arguments.trainer_record,
            writes,
            retry_failed=arguments.retry_failed,
            force_unlock=arguments.force_unlock,
        )
        code = DONE
        if arguments.only is not None:
            from hybridiff.runner.only import draw_again

            code, lines = draw_again(job, arguments.only)
        elif arguments.dry_run:
            lines = report.describe_plan(job) if job.launch.rank == 0 else []
        else:
            code, lines = report.finish(job, run(job, arguments.retry_failed, arguments.force_unlock, parent))
    except UsageError as error:
        say(f"generate: error: {' '.join(str(error).split())}", sys.stderr)
        return MISTAKE
    except OSError as error:
        say(f"generate: error: {type(error).__name__}: {' '.join(str(error).split())}", sys.stderr)
        return NOT_DONE
    except KeyboardInterrupt:
        say("generate: interrupted; what is committed stays, and the same command again does the rest", sys.stderr)
        return INTERRUPTED
    for line in lines:
        say(line, sys.stdout)
    return code


def say(line: str, where: TextIO) -> None:
    """Prints a line without the secrets that this process was given."""
    print(hide(line, known_secrets(sys.argv[1:])), file=where)


def leave(number: int, _: object) -> None:
    """Ends a run that has not begun: there is nothing to finish, and the same signal again changes nothing."""
    for stopping in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(stopping, signal.SIG_IGN)
    print(f"generate: stopped by {signal.Signals(number).name} before anything was drawn", file=sys.stderr)
    sys.exit(AGAIN)


def end(code: int) -> NoReturn:
    """Ends the process when all is committed: with what libraries have registered for it, not with the interpreter's own ending.

    That takes process groups apart whose threads may still run, and at times aborts: 134 instead of 85, and nobody runs it again.
    """
    atexit._run_exitfuncs()  # such as those of Lightning's loggers
    logging.shutdown()
    with suppress(OSError):  # nobody reads any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    gc.disable()  # while libraries are loaded, which takes a fifth longer with it
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the tokenizers' threads and ours would fight over cores
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it advises to install torchvision, which nothing here needs
    sys.excepthook = report_crash
    end(main())
