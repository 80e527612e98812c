"""AsyncDiff's schedule."""

import pytest

from hybridiff.errors import UsageError
from hybridiff.schedule import Async
from tests.schedule.drive import constant, curve, discrepancies, drive, sampler


def test_every_step_after_the_warm_up_is_pipelined() -> None:
    seen = drive(Async(warm_up=3), 8, constant(1), constant(0), discrepancies(lambda i: 0))
    assert seen.kinds == "FFFPPPPP"
    assert not any(decision.shift_time for decision in seen.decisions)
    assert [decision.last for decision in seen.decisions] == [False] * 7 + [True]


def test_stride_repeats_the_last_prediction() -> None:
    seen = drive(Async(warm_up=2, stride=2), 7, curve(lambda i: i), curve(lambda i: 10 * i), discrepancies(lambda i: 0))
    assert seen.kinds == "FFSPSPS"
    assert [given.conditional[0, 0, 0, 0].item() for given in seen.given] == [0, 1, 1, 3, 3, 5, 5]
    assert seen.given[6].difference[0, 0, 0, 0].item() == 50


def test_time_shift_is_set_in_pipelined_steps() -> None:
    seen = drive(Async(warm_up=1, time_shift=True), 3, constant(1), constant(0), discrepancies(lambda i: 0))
    assert [decision.shift_time for decision in seen.decisions] == [False, True, True]


def test_a_warm_up_longer_than_the_sampling_is_refused() -> None:
    with pytest.raises(UsageError, match="warm_up is 9; allowed: at most the number of steps, 5"):
        Async().check(sampler(5))
