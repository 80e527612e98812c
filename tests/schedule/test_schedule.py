"""Schedules, discrepancy and trace: pure numbers."""

import math

import pytest
import torch

from hybridiff.config import UsageError
from hybridiff.schedule import Full, StepKind, Trace, make_schedule, relative_mae


def test_full_plans_full_steps_only() -> None:
    policy = make_schedule("full").begin(50)
    assert [policy.plan(step) for step in range(50)] == [StepKind.FULL] * 50


def test_a_schedule_object_is_taken_as_it_is() -> None:
    schedule = Full()
    assert make_schedule(schedule) is schedule


def test_an_unknown_schedule_is_refused_with_the_choice() -> None:
    with pytest.raises(UsageError, match="schedule is 'half'; allowed: full"):
        make_schedule("half")


def test_relative_mae_is_one_number_per_image() -> None:
    unconditional = torch.tensor([[2.0, -2.0], [1.0, 3.0]]).view(2, 1, 1, 2)
    conditional = torch.tensor([[3.0, -2.0], [1.0, 3.0]]).view(2, 1, 1, 2)
    assert relative_mae(conditional, unconditional).tolist() == [0.25, 0.0]


def test_relative_mae_is_computed_in_single_precision() -> None:
    unconditional = torch.full((1, 1, 64, 64), 60000.0, dtype=torch.float16)  # the difference overflows in half precision
    assert relative_mae(-unconditional, unconditional).item() == 2.0


def test_relative_mae_of_nothing_is_not_a_number() -> None:
    assert math.isnan(relative_mae(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)).item())


def test_trace_counts_steps_and_keeps_each_images_curve() -> None:
    trace = Trace("full", [StepKind.FULL, StepKind.HALF], [torch.tensor([0.5, 0.25]), torch.tensor([1.0, 2.0])])
    assert [trace.count(kind) for kind in StepKind] == [1, 1, 0]
    assert trace.curves() == [[0.5, 1.0], [0.25, 2.0]]
    assert Trace("full").curves() == []
