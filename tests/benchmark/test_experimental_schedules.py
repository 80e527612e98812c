"""The schedules of the experiments, by hand."""

import pytest

from hybridiff.errors import UsageError
from jobs.benchmark.experimental_schedules import LATENT_SIZE, DampedLine, FixedPattern
from tests.schedule.drive import constant, curve, discrepancies, drive

no_discrepancy = discrepancies(lambda i: 0)
line = curve(lambda i: 2 * i)
bent = curve(lambda i: i * i)  # the line is wrong by 2 a step ahead, by 6 two steps ahead


@pytest.mark.parametrize(("order", "expected"), [(2, [4, 1, 2, 0, 0]), (1, [4, 3, 4, 0, 0])])
def test_how_many_steps_may_be_left_out(order: int, expected: list[int]) -> None:
    schedule = DampedLine(1.0, order=order)  # floor(gap (1 / error)^(1 / order)) - 1, at most 4
    seen = [(1, 0.0), (2, 0.5), (2, 0.4), (1, 0.6), (1, 2.0)]
    assert [schedule.steps_left_out(gap, error, 1.0) for gap, error in seen] == expected


def test_half_steps_follow_by_the_last_error() -> None:
    # uniform steps of 1 / 20 at guidance 5: the error after one step is 5 * 20 / 20 * 2 / mean|x| = 10 / LATENT_SIZE
    unit = 10 / LATENT_SIZE
    assert drive(DampedLine(unit * 3.99), 20, constant(1), bent, no_discrepancy).kinds[:7] == "FFFFFFF"
    seen = drive(DampedLine(unit * 4.01), 20, constant(1), bent, no_discrepancy)
    # after a gap of 1: floor(sqrt(4.01)) - 1 = 1 half step; after one of 2, wrong by 6: floor(2 sqrt(4.01 / 3)) - 1 = 1 again
    assert seen.kinds == "FFFFF" + "HF" * 7 + "F"
    assert seen.given[5].difference[0, 0, 0, 0].item() == 16 + 7  # the line from 9 to 16


def test_the_slope_of_the_difference_is_damped_and_errors_are_not_compensated() -> None:
    seen = drive(DampedLine(1e6, damping=0.5), 12, constant(1), bent, no_discrepancy)
    assert seen.kinds == "FFFFFHHHHFHF"
    assert [given.difference[0, 0, 0, 0].item() for given in seen.given[5:10]] == [19.5, 23.0, 26.5, 30.0, 81.0]


def test_one_step_is_skipped_before_each_that_is_computed() -> None:
    seen = drive(DampedLine(1e6, skip_tolerance=1e6), 15, curve(lambda i: 3 * i), constant(1), no_discrepancy)
    assert seen.kinds == "FFFFFSHSHFSHSHF"
    assert [given.conditional[0, 0, 0, 0].item() for given in seen.given] == [3 * i for i in range(15)]
    wild = curve(lambda i: 50 * (-1) ** i)
    assert "S" not in drive(DampedLine(1e6, skip_tolerance=0.1), 15, wild, constant(1), no_discrepancy).kinds


def test_impossible_options_are_refused() -> None:
    with pytest.raises(UsageError, match="order is 3; allowed: 1 or 2"):
        DampedLine(1.0, order=3)
    with pytest.raises(UsageError, match="tolerance is 0; allowed: more than 0"):
        DampedLine(0)


def test_the_pattern_repeats_between_the_edges() -> None:
    seen = drive(FixedPattern("HSF", warm_up=2), 9, line, constant(1), no_discrepancy)
    assert seen.kinds == "FFHSFHSFF"
    assert [round(given.conditional[0, 0, 0, 0].item(), 4) for given in seen.given] == [2 * i for i in range(9)]


@pytest.mark.parametrize(("compensate", "total"), [(True, 30), (False, 29)])
def test_errors_of_extrapolated_steps_are_compensated_if_requested(compensate: bool, total: float) -> None:
    rising = curve(lambda i: i * i)
    seen = drive(FixedPattern("SF", damping=0.0, compensate=compensate, warm_up=2), 5, rising, constant(0), no_discrepancy)
    assert seen.kinds == "FFSFF"
    # 0, 1, 1 carried over where 4 was true, 9, 16; the parabola through the last three computed values is exact
    assert sum(given.conditional[0, 0, 0, 0].item() for given in seen.given) == pytest.approx(total - 2 * (not compensate))


def test_a_pattern_without_full_steps_is_refused() -> None:
    with pytest.raises(UsageError, match="pattern is 'SS'; allowed: F, H and S, at least one F"):
        FixedPattern("SS")
