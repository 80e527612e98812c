"""POLICY: which kind of step comes next, and what is predicted. Pure functions and small classes; no ranks, no collectives."""

from hybridiff.schedule.adaptive import Adaptive
from hybridiff.schedule.asynchronous import Async
from hybridiff.schedule.base import Branches, Decision, Schedule, StepKind, StepPolicy
from hybridiff.schedule.choose import make_schedule
from hybridiff.schedule.discrepancy import relative_mae
from hybridiff.schedule.full import Full
from hybridiff.schedule.paper import Paper
from hybridiff.schedule.refresh import Refresh
from hybridiff.schedule.sampler import Sampler, SamplerReader
from hybridiff.schedule.trace import Trace

__all__ = [
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
    "make_schedule",
    "relative_mae",
]
