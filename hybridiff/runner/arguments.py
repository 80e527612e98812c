"""The options of jobs/generate.py, from the command line and from YAML files."""

import inspect
import re
from dataclasses import dataclass
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import Trainer

from hybridiff.config import DataConfig, JobConfig, ModelConfig, OutputConfig, ParallelConfig, SamplingConfig, ScheduleConfig
from hybridiff.errors import UsageError
from hybridiff.secrets import redact

SECTIONS = {
    "model": ModelConfig,
    "sampling": SamplingConfig,
    "parallel": ParallelConfig,
    "schedule": ScheduleConfig,
    "data": DataConfig,
    "output": OutputConfig,
}
TRAINER_OPTIONS = (
    "accelerator",
    "devices",
    "num_nodes",
    "logger",
    "callbacks",
    "limit_predict_batches",
    "enable_progress_bar",
    "deterministic",
    "benchmark",
    "profiler",
    "default_root_dir",
)


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


def parse(arguments: list[str]) -> Arguments:
    """The arguments of the command line and of the YAML files that it names.

    Raises:
        UsageError: an unknown option, or a value that is not allowed.
    """
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
    _add_trainer(parser)
    try:
        options = parser.parse_args(arguments)
        sections = parser.instantiate(options)
    except UsageError:
        raise
    except (ArgumentError, ValueError, TypeError, OSError) as error:
        raise UsageError(_in_words(" ".join(str(error).split()))) from error
    _refuse_secrets_in_names(options["trainer"].as_dict().get("logger"))
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


def _refuse_secrets_in_names(loggers: Any) -> None:
    """Refuses secrets that a logger would write: into names of its files and of its metrics.

    Raises:
        UsageError: names the option.
    """
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        given = logger.get("init_args", {}) if isinstance(logger, dict) else {}
        for name in ("name", "version", "prefix"):
            if redact(given.get(name)) != given.get(name):
                allowed = "a text without one, as the logger writes it; credentials come from the environment"
                raise UsageError(f"trainer.logger.{name} holds a secret; allowed: {allowed}")


def _in_words(error: str) -> str:
    """What jsonargparse says of an option that may be a number or absent, as other mistakes are told."""
    wrong = re.fullmatch(r"Parser key \"([^\"]+)\": .*\[<class 'int'>, <class 'NoneType'>\].* Given value: (.*)", error)
    if wrong is None:
        return error
    name, given = wrong.groups()
    return f"{name} is {given!r}; allowed: {'a number of bytes' if name.endswith('_bytes') else 'a whole number'}"


def _add_trainer(parser: Any) -> None:
    """Adds the section ``trainer``: those of Lightning's options that bear on generation, so that none is taken and ignored."""
    skipped = set(inspect.signature(Trainer).parameters) - set(TRAINER_OPTIONS)
    parser.add_class_arguments(Trainer, "trainer", skip=skipped, instantiate=False)
