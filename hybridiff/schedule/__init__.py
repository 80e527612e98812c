"""POLICY: which kind of step comes next, and what is predicted. Pure functions and small classes; no ranks, no collectives.

A schedule is a frozen dataclass, which is its configuration too. Nothing here imports torch before a generation runs.
"""

from dataclasses import fields
from typing import Any

from hybridiff.errors import require, require_choice
from hybridiff.schedule.adaptive import Adaptive
from hybridiff.schedule.asynchronous import Async
from hybridiff.schedule.base import Branches, Decision, Schedule, StepKind, StepPolicy
from hybridiff.schedule.discrepancy import relative_mae
from hybridiff.schedule.full import Full
from hybridiff.schedule.paper import Paper
from hybridiff.schedule.refresh import Refresh
from hybridiff.schedule.sampler import Sampler, SamplerReader
from hybridiff.schedule.trace import Trace

__all__ = [
    "SCHEDULES",
    "Adaptive",
    "Async",
    "Branches",
    "Decision",
    "Full",
    "Paper",
    "Refresh",
    "Sampler",
    "SamplerReader",
    "Schedule",
    "StepKind",
    "StepPolicy",
    "Trace",
    "class_path",
    "make_schedule",
    "relative_mae",
    "schedule_spec",
]

SCHEDULES: dict[str, type[Schedule]] = {kind.name: kind for kind in (Adaptive, Full, Paper, Refresh, Async)}


def make_schedule(schedule: str | Schedule, **options: Any) -> Schedule:
    """A schedule by name, with its defaults except for the options given; or the given object itself.

    Raises:
        UsageError: an unknown name, an option that the schedule does not have, or a value that is not allowed.
    """
    if isinstance(schedule, Schedule):
        assert not options, "a schedule object has its options"
        return schedule
    require_choice("schedule", schedule, tuple(SCHEDULES))
    kind: Any = SCHEDULES[schedule]
    known = [field.name for field in fields(kind)]
    for option, given in options.items():
        require(option in known, option, given, f"nothing; the options of schedule {schedule} are {', '.join(known) or 'none'}")
    made: Schedule = kind(**options)
    return made


def class_path(name: str) -> str:
    """The import path of a schedule's class by its name, such as adaptive or Adaptive; any other text is returned as it is."""
    kinds = SCHEDULES | {kind.__name__: kind for kind in SCHEDULES.values()}
    return f"{__name__}.{kinds[name].__name__}" if name in kinds else name


def schedule_spec(schedule: Schedule) -> dict[str, Any]:
    """A schedule as configuration files write it: ``class_path``, which is the name of a built-in one, and all ``init_args``."""
    kind = type(schedule)
    built_in = SCHEDULES.get(schedule.name) is kind
    return {
        "class_path": schedule.name if built_in else f"{kind.__module__}.{kind.__qualname__}",
        "init_args": schedule.options(),
    }
