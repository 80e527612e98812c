"""Schedules with windows: the paper's, and refresh."""

from collections.abc import Callable

import pytest

from hybridiff.errors import UsageError
from hybridiff.schedule import Paper, Refresh, Sampler, Schedule
from tests.schedule.drive import Driven, constant, curve, discrepancies, drive, sampler


def run(schedule: Schedule, steps: int, falling: Callable[[int], float] = lambda i: 0.0) -> Driven:
    return drive(schedule, steps, constant(1.0), curve(lambda i: i), discrepancies(falling))


def test_the_window_opens_after_the_first_small_slope() -> None:
    # M falls by 1 a step until step 6, then stays: with L = 3, G_7 = (M_5 - M_7) / 3 = 1 / 3 and G_8 = (M_6 - M_8) / 3 = 0
    seen = run(Paper(slope_window=3, slope_threshold=0.1, tau_cap=15, k=4), 20, lambda i: max(6 - i, 0))
    assert seen.kinds == "F" * 9 + "H" * 4 + "F" * 7
    assert [d.reason for d in seen.decisions[8:14]] == ["warm-up", "slope", "slope", "slope", "slope", "fully-connecting"]
    assert seen.decisions[8].measure == pytest.approx(1 / 3) and seen.decisions[9].measure == 0.0


def test_there_is_no_slope_before_more_than_l_values() -> None:
    assert run(Paper(slope_window=5, slope_threshold=0.1, tau_cap=15, k=1), 20).kinds.index("H") == 6


def test_a_rising_discrepancy_does_not_open_the_window() -> None:
    seen = run(Paper(slope_window=3, slope_threshold=0.1, tau_cap=15, k=2), 20, lambda i: i)
    assert seen.kinds == "F" * 15 + "HH" + "FFF"
    assert seen.decisions[15].reason == "cap"


def test_exactly_k_half_steps_and_the_last_is_marked() -> None:
    seen = run(Paper(tau_cap=2, k=3), 10)
    assert seen.kinds == "FFHHHFFFFF"
    assert [d.last for d in seen.decisions] == [i == 4 for i in range(10)]
    assert run(Paper(tau_cap=2, k=0), 4).kinds == "FFFF"


def test_presets_are_the_paper_values() -> None:
    sdxl = Paper().preset(Sampler(50, "UNet2DConditionModel", "DDIMScheduler"))
    assert (sdxl.slope_window, sdxl.slope_threshold, sdxl.k, sdxl.tau_cap) == (12, 0.4e-3, 5, 15)
    sd3 = Paper(k=20).preset(Sampler(50, "SD3Transformer2DModel", "FlowMatchEulerDiscreteScheduler"))
    assert (sd3.slope_window, sd3.slope_threshold, sd3.k, sd3.tau_cap) == (15, 0.1e-3, 20, 40)
    assert Paper(tau_cap=7).preset(sampler(50)).tau_cap == 7


def test_a_window_that_may_not_fit_is_refused() -> None:
    Paper(tau_cap=15, k=5).check(sampler(20))
    with pytest.raises(UsageError, match="tau_cap is 15 and k is 6; allowed: a sum of at most 20, the number of steps"):
        Paper(tau_cap=15, k=6).check(sampler(20))
    with pytest.raises(UsageError, match="tau_cap is 40 and k is 5; allowed: a sum of at most 30"):
        Paper().begin(sampler(30, "FlowMatchEulerDiscreteScheduler", "SD3Transformer2DModel"))


@pytest.mark.parametrize(("guidance", "expected"), [("merged", [0, 0]), ("carry", [3, 3]), ("extrapolate", [4, 5])])
def test_the_difference_of_half_steps(guidance: str, expected: list[int]) -> None:
    seen = run(Paper(tau_cap=4, k=2, guidance=guidance), 8)  # D is the number of the step
    assert [given.difference[0, 0, 0, 0].item() for given in seen.given[4:6]] == expected
    assert all(given.conditional.eq(1).all() for given in seen.given)


def test_refresh_adds_a_full_step_after_every_few_half_steps() -> None:
    seen = run(Refresh(first=3, last=9, refresh_every=2), 12)
    assert seen.kinds == "FFFHHFHHFHFF"
    assert [i for i, d in enumerate(seen.decisions) if d.last] == [4, 7, 9]
    assert run(Refresh(first=2, last=-2, refresh_every=1), 8).kinds == "FFHFHFHF"


@pytest.mark.parametrize(("first", "last"), [(8, 20), (8, 7), (8, -14)])
def test_a_refreshed_window_that_does_not_fit_is_refused(first: int, last: int) -> None:
    with pytest.raises(UsageError, match=rf"first is {first} and last is {last}; allowed: first <= last < 20"):
        Refresh(first=first, last=last).check(sampler(20))
