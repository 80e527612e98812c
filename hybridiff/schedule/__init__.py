"""POLICY: the kind of each denoising step, and the extrapolation of what a step does not compute. No ranks, no collectives.

A schedule is a frozen dataclass, which is its configuration too. Importing this package does not import torch.
"""

from dataclasses import fields
from typing import Any

from hybridiff.errors import require, require_choice
from hybridiff.schedule.adaptive import Adaptive
from hybridiff.schedule.base import Branches, Decision, Schedule, StepKind, StepPolicy, relative_mae
from hybridiff.schedule.fixed import Async, Full
from hybridiff.schedule.sampler import Sampler, SamplerReader
from hybridiff.schedule.trace import Trace
from hybridiff.schedule.windows import Paper, Refresh

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
    """A schedule by its name, with the given options and defaults for the rest; a schedule object is returned as it is.

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
    """The class path of a built-in schedule by its name, such as adaptive or Adaptive; any other text is returned as it is."""
    kinds = SCHEDULES | {kind.__name__: kind for kind in SCHEDULES.values()}
    return f"{__name__}.{kinds[name].__name__}" if name in kinds else name


def schedule_spec(schedule: Schedule) -> dict[str, Any]:
    """A schedule as YAML has it: ``class_path``, the name alone for a built-in one, and ``init_args`` with all options."""
    kind = type(schedule)
    built_in = SCHEDULES.get(schedule.name) is kind
    return {
        "class_path": schedule.name if built_in else f"{kind.__module__}.{kind.__qualname__}",
        "init_args": schedule.options(),
    }
