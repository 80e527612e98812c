"""The section ``schedule``."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ScheduleConfig:
    """Options of parallel.schedule; one that the schedule does not have is refused, one left out has the schedule's default.

    Args:
        tolerance: adaptive: the error that is worth a full step; smaller is more exact, larger is faster.
        max_half_steps: adaptive: half steps in a row.
        max_skip_steps: adaptive: skip steps in a row.
        min_full_steps: adaptive: full steps at the start.
        slope_window: paper: L, steps over which the slope of the discrepancy is taken.
        slope_threshold: paper: g, the slope per step below which the window opens.
        tau_cap: paper: the step at which the window opens at the latest.
        k: paper: half steps in the window.
        guidance: paper and refresh: the guidance difference in half steps: merged, carry or extrapolate.
        first: refresh: the first half step.
        last: refresh: the last step that may be a half step; negative counts from the end.
        refresh_every: refresh: half steps between two full ones.
        warm_up: async: full steps at the start.
        stride: async: every so many steps one is pipelined.
        time_shift: async: whether segments are told the timestep of the step before.
    """

    tolerance: float | None = None
    max_half_steps: int | None = None
    max_skip_steps: int | None = None
    min_full_steps: int | None = None
    slope_window: int | None = None
    slope_threshold: float | None = None
    tau_cap: int | None = None
    k: int | None = None
    guidance: str | None = None
    first: int | None = None
    last: int | None = None
    refresh_every: int | None = None
    warm_up: int | None = None
    stride: int | None = None
    time_shift: bool | None = None

    def given(self) -> dict[str, Any]:
        """The options that were given."""
        return {name: value for name, value in asdict(self).items() if value is not None}
