"""Schedules by name."""

from dataclasses import fields
from typing import Any

from hybridiff.config import SCHEDULES
from hybridiff.errors import require, require_choice
from hybridiff.schedule.adaptive import Adaptive
from hybridiff.schedule.asynchronous import Async
from hybridiff.schedule.base import Schedule
from hybridiff.schedule.full import Full
from hybridiff.schedule.paper import Paper
from hybridiff.schedule.refresh import Refresh


def make_schedule(schedule: str | Schedule, **options: Any) -> Schedule:
    """A schedule by name, with its defaults except for the options given, or the given object itself.

    Raises:
        UsageError: the name is unknown, or the schedule has no such option, or the option no such value.
    """
    if not isinstance(schedule, str):
        assert not options, "a schedule object has its options"
        return schedule
    require_choice("schedule", schedule, SCHEDULES)
    known: dict[str, Any] = {kind.name: kind for kind in (Full, Paper, Refresh, Adaptive, Async)}
    allowed = [field.name for field in fields(known[schedule])]
    for option, given in options.items():
        options_of = f"nothing; the options of schedule {schedule} are {', '.join(allowed) or 'none'}"
        require(option in allowed, option, given, options_of)
    made: Schedule = known[schedule](**options)
    return made
