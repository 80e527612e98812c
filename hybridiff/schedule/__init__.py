"""POLICY: which kind of step comes next. Pure functions and small classes; no ranks, no collectives."""

from hybridiff.schedule.base import Full, Schedule, StepKind, StepPolicy, make_schedule
from hybridiff.schedule.discrepancy import relative_mae
from hybridiff.schedule.trace import Trace

__all__ = ["Full", "Schedule", "StepKind", "StepPolicy", "Trace", "make_schedule", "relative_mae"]
