"""The options of jobs/generate.py, from the command line and from YAML files."""

import inspect
import re
from dataclasses import dataclass, fields
from pydoc import locate
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, get_loader, set_loader
from lightning.pytorch import Trainer

from hybridiff.config import DataConfig, JobConfig, ModelConfig, OutputConfig, ParallelConfig, SamplingConfig
from hybridiff.errors import UsageError
from hybridiff.schedule import SCHEDULES, Schedule, class_path

SECTIONS = {
    "model": ModelConfig,
    "sampling": SamplingConfig,
    "parallel": ParallelConfig,
    "data": DataConfig,
    "output": OutputConfig,
}
_PARSER_MODE = "hybridiff"
_SCHEDULE_OPTION = "--parallel.schedule"
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

    Raises:
        UsageError: options that contradict each other.
    """

    config: JobConfig
    trainer: dict[str, Any]
    trainer_record: dict[str, Any]
    dry_run: bool
    only: str | None
    retry_failed: bool

    def __post_init__(self) -> None:
        reads = "dry_run" if self.dry_run else "only" if self.only is not None else ""
        if self.dry_run and self.only is not None:
            raise UsageError("dry_run is given with only; allowed: one of them")
        if reads and self.retry_failed:
            raise UsageError(f"retry_failed is given with {reads}, which writes nothing; allowed: one of them")


def parse(arguments: list[str]) -> Arguments:
    """The arguments of the command line and of the YAML files that it names.

    Raises:
        UsageError: an unknown option, or a value that is not allowed.
    """
    description = "A table of prompts in, a WebDataset and Parquet corpus out. The same command again does what is left."
    parser = ArgumentParser(prog="generate.py", description=description, exit_on_error=False, parser_mode=_PARSER_MODE)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below.")
    parser.add_argument("--dry_run", action="store_true", help="Print the plan and stop; nothing is written.")
    help_only = "Draw the row of this key again, in its batch, and compare it with the corpus: exit code 0 if equal, else 1."
    parser.add_argument("--only", metavar="KEY", help=help_only)
    parser.add_argument("--retry_failed", action="store_true", help="Draw only failed rows, of committed shards.")
    for name, section in SECTIONS.items():
        parser.add_class_arguments(section, name)
    _add_trainer(parser)
    try:
        options = parser.parse_args(_with_class_path(arguments))
        sections = parser.instantiate(options, instantiators=[(_make_schedule, Schedule, True)])
    except UsageError:
        raise
    except (ArgumentError, ValueError, TypeError, OSError) as error:
        raise UsageError(_in_words(" ".join(str(error).split()))) from error
    config = JobConfig(**{name: sections[name] for name in SECTIONS})
    return Arguments(
        config,
        sections["trainer"].as_dict(),
        options["trainer"].as_dict(),
        dry_run=options.dry_run,
        only=options.only,
        retry_failed=options.retry_failed,
    )


def _with_class_path(arguments: list[str]) -> list[str]:
    """The arguments with the name of a schedule, such as adaptive, replaced by the path of its class."""
    replaced = list(arguments)
    for index, argument in enumerate(arguments):
        if argument.startswith(f"{_SCHEDULE_OPTION}="):
            name, given = argument.split("=", 1)
            replaced[index] = f"{name}={class_path(given)}"
        elif index and arguments[index - 1] == _SCHEDULE_OPTION:
            replaced[index] = class_path(argument)
    return replaced


def _load_yaml(text: str) -> Any:
    """A value as jsonargparse loads it, with the path of the class for a schedule's name, wherever the section is in it."""
    loaded = get_loader("yaml")(text)
    if not isinstance(loaded, dict):
        return loaded
    section = loaded.get("parallel")
    if isinstance(section, dict) and "schedule" in section:
        section["schedule"] = _schedule_with_class_path(section["schedule"])
    return _schedule_with_class_path(loaded) if loaded.keys() <= {"class_path", "init_args"} else loaded


def _schedule_with_class_path(given: Any) -> Any:
    if isinstance(given, str):
        return class_path(given)
    if isinstance(given, dict) and isinstance(given.get("class_path"), str):
        return given | {"class_path": class_path(given["class_path"])}
    return given


set_loader(_PARSER_MODE, _load_yaml)


def _make_schedule(kind: type[Schedule], *args: Any, **options: Any) -> Schedule:
    """Makes a schedule; its own checks name their option without the section."""
    try:
        return kind(*args, **options)
    except UsageError as error:
        raise UsageError(f"parallel.schedule.{error}") from error


_TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}


def _in_words(error: str) -> str:
    """What jsonargparse says of an option that may be a number or absent, or of a schedule, as other mistakes are reported."""
    of_schedule = re.fullmatch(r"Parser key \"parallel\.schedule\": (.*)", error)
    if of_schedule is not None:
        return _schedule_in_words(of_schedule[1])
    wrong = re.fullmatch(r"Parser key \"([^\"]+)\": .*\[<class 'int'>, <class 'NoneType'>\].* Given value: (.*)", error)
    if wrong is None:
        return error
    name, given = wrong.groups()
    return f"{name} is {given!r}; allowed: {'a number of bytes' if name.endswith('_bytes') else 'a whole number'}"


def _schedule_in_words(error: str) -> str:
    if unknown := re.fullmatch(r"Problem with given class_path '(.*)': Option '(.*)' is not accepted", error):
        kind: Any = locate(unknown[1])
        known = ", ".join(field.name for field in fields(kind)) or "none"
        return f"parallel.schedule.{unknown[2]} is given; allowed: the options of schedule {kind.name}, which are {known}"
    if wrong := re.fullmatch(r"Problem .*Parser key \"(\w+)\": .*?<class '(\w+)'>.* value: (.*)", error):
        return f"parallel.schedule.{wrong[1]} is {wrong[3]!r}; allowed: {_TYPES.get(wrong[2], wrong[2])}"
    allowed = f"{', '.join(SCHEDULES)}, or the class path of a schedule of your own"
    if name := re.fullmatch(r"Expected a dot import path string: (.*)", error):
        return f"parallel.schedule is {name[1]!r}; allowed: {allowed}"
    return f"parallel.schedule: {error}; allowed: {allowed}"


def _add_trainer(parser: Any) -> None:
    """Adds the section ``trainer``: those of Lightning's options that bear on generation, so that none is taken and ignored."""
    skipped = set(inspect.signature(Trainer).parameters) - set(TRAINER_OPTIONS)
    parser.add_class_arguments(Trainer, "trainer", skip=skipped, instantiate=False)
