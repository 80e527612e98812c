"""Ideal speed-ups: the paper's numbers, and every placement's by hand."""

import pytest

from hybridiff.errors import UsageError
from hybridiff.schedule import StepKind
from jobs.benchmark.ideal import LargestSegment, ideal_speedup, rank_cost, read_pattern

FULL, HALF, SKIP, PIPELINED = StepKind.FULL, StepKind.HALF, StepKind.SKIP, StepKind.PIPELINED


@pytest.mark.parametrize(("half", "expected"), [(0, 2.00), (5, 2.11), (20, 2.50), (30, 2.86)])
def test_the_papers_windows_on_a_pair(half: int, expected: float) -> None:
    assert ideal_speedup(50, {FULL: 50 - half, HALF: half}, 2, 1) == pytest.approx(expected, abs=0.005)


COSTS = {  # group size, images: full, half, pipelined, by segments of 0.6 and 0.3
    (1, 1): (2, 1, 2),
    (2, 1): (1, 0.6, 1.2),
    (2, 3): (1, 0.6, 1.2),
    (4, 1): (1, 0.3, 0.6),
    (4, 2): (0.5, 0.3, 0.6),
    (4, 3): (2 / 3, 0.4, 0.6),
}


@pytest.mark.parametrize("placement", COSTS)
def test_cost_of_each_kind_of_step(placement: tuple[int, int]) -> None:
    found = [rank_cost({kind: 1}, *placement, LargestSegment(0.6, 0.3)) for kind in (FULL, HALF, PIPELINED)]
    assert found == pytest.approx(COSTS[placement])
    assert rank_cost({SKIP: 7}, *placement, LargestSegment()) == 0


def test_fewer_steps_count_as_such() -> None:
    assert ideal_speedup(50, {FULL: 25}, 1, 4) == 2
    assert ideal_speedup(50, {FULL: 25}, 2, 4) == 4


def test_skips_cost_nothing_and_an_uneven_cut_costs_its_larger_part() -> None:
    counts = {FULL: 10, HALF: 20, SKIP: 20}
    assert ideal_speedup(50, counts, 2, 1) == pytest.approx(100 / 20)
    assert ideal_speedup(50, counts, 2, 1, LargestSegment(0.56, 0.3)) == pytest.approx(100 / 21.2)


def test_patterns() -> None:
    assert read_pattern("F2  H1 S1 F1") == [FULL, FULL, HALF, SKIP, FULL]
    for wrong in ("", "F", "X3", "F3H2", "3F", "F5 P5", "H5", "S5 F5", "F0 H5", "F5 H0"):
        with pytest.raises(UsageError, match=r"F15 H5 F30"):
            read_pattern(wrong)
