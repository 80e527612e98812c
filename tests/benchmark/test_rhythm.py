"""A fixed rhythm of steps."""

import pytest

from hybridiff.errors import UsageError
from jobs.benchmark.rhythm import Rhythm
from tests.schedule.drive import constant, curve, discrepancies, drive

line = curve(lambda i: 2 * i)


def test_the_pattern_repeats_between_the_edges() -> None:
    seen = drive(Rhythm("HSF", warm_up=2), 9, line, constant(1), discrepancies(lambda i: 0))
    assert seen.kinds == "FFHSFHSFF"
    assert [round(given.conditional[0, 0, 0, 0].item(), 4) for given in seen.given] == [2 * i for i in range(9)]


@pytest.mark.parametrize(("compensate", "total"), [(True, 30), (False, 29)])
def test_what_was_foretold_wrong_is_paid_back_if_asked(compensate: bool, total: float) -> None:
    rising = curve(lambda i: i * i)
    seen = drive(Rhythm("SF", damping=0.0, compensate=compensate, warm_up=2), 5, rising, constant(0), discrepancies(lambda i: 0))
    assert seen.kinds == "FFSFF"
    # 0, 1, 1 carried on where 4 was true, 9, 16; the parabola through the last three computed values is exact
    assert sum(given.conditional[0, 0, 0, 0].item() for given in seen.given) == pytest.approx(total - 2 * (not compensate))


def test_a_pattern_without_full_steps_is_refused() -> None:
    with pytest.raises(UsageError, match="pattern is 'SS'; allowed: F, H and S, at least one F"):
        Rhythm("SS")
