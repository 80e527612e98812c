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
from dataclasses import dataclass
from typing import Any, NoReturn, TextIO

from jsonargparse import ArgumentError, ArgumentParser

from hybridiff.cluster.exit_codes import AGAIN, DONE, INTERRUPTED, MISTAKE, NOT_DONE
from hybridiff.config import (
    DataConfig,
    JobConfig,
    ModelConfig,
    OutputConfig,
    ParallelConfig,
    SamplingConfig,
    ScheduleConfig,
    UsageError,
)
from hybridiff.secrets import hide, known_secrets, report_crash

SECTIONS = {
    "model": ModelConfig,
    "sampling": SamplingConfig,
    "parallel": ParallelConfig,
    "schedule": ScheduleConfig,
    "data": DataConfig,
    "output": OutputConfig,
}


@dataclass(frozen=True)
class Arguments:
    """The command line, parsed.

    Args:
        config: What the corpus depends on.
        trainer: Lightning's options, loggers and callbacks instantiated.
        trainer_record: The same as plain values, for run.json.
        dry_run: Whether to print the plan and stop.
        only: Key of the one row to draw again and compare.
        retry_failed: Whether to draw failed rows again.
        force_unlock: Whether to take the output over from another run.

    Raises:
        UsageError: options that contradict each other.
    """

    config: JobConfig
    trainer: dict[str, Any]
    trainer_record: dict[str, Any]
    dry_run: bool
    only: str | None
    retry_failed: bool
    force_unlock: bool

    def __post_init__(self) -> None:
        reads = "dry_run" if self.dry_run else "only" if self.only is not None else ""
        if self.dry_run and self.only is not None:
            raise UsageError("dry_run is given with only; allowed: one of them")
        for name in ("retry_failed", "force_unlock"):
            if reads and getattr(self, name):
                raise UsageError(f"{name} is given with {reads}, which writes nothing; allowed: one of them")


def main() -> int:
    """Parses, checks, runs."""
    parent = os.getppid()  # before the libraries are loaded, meanwhile it may end
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, leave)  # until the run begins, which has handlers of its own
    try:
        arguments = parse(sys.argv[1:])
        from hybridiff.lit import report
        from hybridiff.lit.prepare import prepare
        from hybridiff.lit.run import run

        gc.freeze()  # of what was loaded nothing will go
        gc.enable()
        writes = not arguments.dry_run and arguments.only is None
        job = prepare(arguments.config, arguments.trainer, arguments.trainer_record, writes)
        code = DONE
        if arguments.only is not None:
            from hybridiff.lit.only import draw_again

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


def parse(arguments: list[str]) -> Arguments:
    """The arguments of the command line and of the YAML files that it names.

    Raises:
        UsageError: an unknown option, or a value that is not allowed.
    """
    from hybridiff.lit.trainer import add_trainer_arguments

    description = "A table of prompts in, a WebDataset and Parquet corpus out. The same command again does what is left."
    parser = ArgumentParser(prog="generate.py", description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below.")
    parser.add_argument("--dry_run", action="store_true", help="Print the plan and stop; nothing is written.")
    help_only = "Draw the row of this key again, in its batch, and compare it with the corpus: exit code 0 if equal, else 1."
    parser.add_argument("--only", metavar="KEY", help=help_only)
    parser.add_argument("--retry_failed", action="store_true", help="Draw only failed rows, of committed shards.")
    parser.add_argument("--force_unlock", action="store_true", help="Take the output over from a run that seems to write it.")
    for name, section in SECTIONS.items():
        parser.add_class_arguments(section, name)
    add_trainer_arguments(parser)
    try:
        options = parser.parse_args(arguments)
        sections = parser.instantiate(options)
    except UsageError:
        raise
    except (ArgumentError, ValueError, TypeError, OSError) as error:
        raise UsageError(" ".join(str(error).split())) from error
    config = JobConfig(**{name: sections[name] for name in SECTIONS})
    return Arguments(
        config,
        sections["trainer"].as_dict(),
        options["trainer"].as_dict(),
        dry_run=options.dry_run,
        only=options.only,
        retry_failed=options.retry_failed,
        force_unlock=options.force_unlock,
    )


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
