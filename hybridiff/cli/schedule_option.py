"""The option ``parallel.schedule``: the name of a schedule or the class path of one, with the schedule's own options below it."""

import re
from dataclasses import fields
from pydoc import locate
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from hybridiff.cli.help_in_words import TYPES
from hybridiff.errors import UsageError
from hybridiff.schedule import SCHEDULES, Schedule, class_path

SCHEDULE_OPTIONS = ("--parallel.schedule", "--parallel.schedule.help")
SCHEDULES_ALLOWED = f"{', '.join(SCHEDULES)}, or the class path of a schedule of your own"
PARSER_MODE = "hybridiff"  # of jsonargparse: YAML in which a schedule's name stands for its class


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


set_loader(PARSER_MODE, _load_yaml, exceptions=(yaml.YAMLError,))


def instantiate_schedule(kind: type[Schedule], *args: Any, **options: Any) -> Schedule:
    """Makes a schedule; its own checks name their option without the section."""
    try:
        return kind(*args, **options)
    except UsageError as error:
        raise UsageError(f"parallel.schedule.{error}") from error


def explain_schedule(error: str) -> str:
    """What jsonargparse found wrong with a schedule, in words: what was given, what is allowed."""
    if unknown := re.fullmatch(r"Problem with given class_path '(.*)': Option '(.*)' is not accepted", error):
        kind: Any = locate(unknown[1])
        known = ", ".join(field.name for field in fields(kind)) or "none"
        return f"parallel.schedule.{unknown[2]} is given; allowed: the options of schedule {kind.name}, which are {known}"
    if wrong := re.fullmatch(r"Problem .*Parser key \"(\w+)\": .*?<class '(\w+)'>.* value: (.*)", error):
        return f"parallel.schedule.{wrong[1]} is {wrong[3]!r}; allowed: {TYPES.get(wrong[2], wrong[2])}"
    if name := re.fullmatch(r"Expected a dot import path string: (.*)", error):
        return f"parallel.schedule is {name[1]!r}; allowed: {SCHEDULES_ALLOWED}"
    return f"parallel.schedule: {error}; allowed: {SCHEDULES_ALLOWED}"
