"""Schedules by name, and traces."""

import math

import pytest
import torch

from hybridiff.errors import UsageError
from hybridiff.schedule import (
    SCHEDULES,
    Adaptive,
    Async,
    Branches,
    Decision,
    Full,
    Paper,
    Refresh,
    Sampler,
    StepKind,
    Trace,
    make_schedule,
    relative_mae,
)


def test_discrepancy_is_per_image() -> None:
    unconditional = torch.tensor([[1.0, -1.0], [2.0, 2.0]]).view(2, 1, 1, 2)
    conditional = torch.tensor([[1.5, -1.0], [2.0, 1.0]]).view(2, 1, 1, 2)
    assert relative_mae(conditional, unconditional).tolist() == [0.25, 0.25]
    assert math.isinf(relative_mae(conditional, torch.zeros_like(conditional))[0].item())


def test_discrepancy_of_half_precision_is_computed_in_single() -> None:
    unconditional = torch.full((1, 1, 64, 64), 1.0, dtype=torch.bfloat16)
    conditional = torch.full((1, 1, 64, 64), 1.0078125, dtype=torch.bfloat16)
    assert relative_mae(conditional, unconditional).tolist() == [0.0078125]


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_has_a_name(name: str) -> None:
    assert make_schedule(name).name == name


def test_options_are_those_of_the_schedule() -> None:
    assert make_schedule("paper", k=20, guidance="carry") == Paper(k=20, guidance="carry")
    assert make_schedule(Paper(k=3)) == Paper(k=3)
    with pytest.raises(UsageError, match=r"tolerance is 0.3; allowed: nothing; the options of schedule paper are slope_window"):
        make_schedule("paper", tolerance=0.3)
    with pytest.raises(UsageError, match="k is 3; allowed: nothing; the options of schedule full are none"):
        make_schedule("full", k=3)
    with pytest.raises(UsageError, match="schedule is 'fast'; allowed: adaptive, full, paper"):
        make_schedule("fast")


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        ("paper", {"k": -1}, "k is -1"),
        ("paper", {"slope_window": 1}, "slope_window is 1"),
        ("paper", {"guidance": "off"}, "guidance is 'off'; allowed: merged, carry, extrapolate"),
        ("refresh", {"refresh_every": 0}, "refresh_every is 0"),
        ("refresh", {"first": 0}, "first is 0"),
        ("adaptive", {"tolerance": 0.0}, "tolerance is 0.0"),
        ("adaptive", {"tolerance": "0.6"}, "tolerance is '0.6'; allowed: more than 0, and finite"),
        ("adaptive", {"tolerance": None}, "tolerance is None"),
        ("adaptive", {"tolerance": float("inf")}, "tolerance is inf"),
        ("paper", {"slope_threshold": "small"}, "slope_threshold is 'small'; allowed: more than 0, and finite"),
        ("adaptive", {"max_skip_steps": 9}, "max_skip_steps is 9; allowed: 0 to 8"),
        ("adaptive", {"min_full_steps": 1}, "min_full_steps is 1"),
        ("async", {"warm_up": 0}, "warm_up is 0"),
        ("async", {"stride": 0}, "stride is 0"),
        ("adaptive", {"max_skip_steps": 2.5}, "max_skip_steps is 2.5; allowed: a whole number"),
        ("adaptive", {"max_half_steps": 4.0}, "max_half_steps is 4.0; allowed: a whole number"),
        ("adaptive", {"min_full_steps": True}, "min_full_steps is True; allowed: a whole number"),
        ("paper", {"k": 2.5}, "k is 2.5; allowed: a whole number"),
        ("paper", {"k": None}, "k is None; allowed: a whole number"),
        ("paper", {"slope_window": 2.5}, "slope_window is 2.5; allowed: a whole number"),
        ("paper", {"tau_cap": "9"}, "tau_cap is '9'; allowed: a whole number"),
        ("refresh", {"first": 1.5}, "first is 1.5; allowed: a whole number"),
        ("refresh", {"last": -1.5}, "last is -1.5; allowed: a whole number"),
        ("refresh", {"refresh_every": 1.5}, "refresh_every is 1.5; allowed: a whole number"),
        ("async", {"warm_up": 1.5}, "warm_up is 1.5; allowed: a whole number"),
        ("async", {"stride": 1.5}, "stride is 1.5; allowed: a whole number"),
        ("async", {"time_shift": 1}, "time_shift is 1; allowed: true or false"),
    ],
)
def test_impossible_options_are_refused(schedule: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_schedule(schedule, **options)


def test_kinds_of_schedules() -> None:
    assert Full().kinds == {StepKind.FULL}
    assert Adaptive().kinds == {StepKind.FULL, StepKind.HALF, StepKind.SKIP}
    assert Adaptive(max_half_steps=0).kinds == {StepKind.FULL, StepKind.SKIP}


def test_only_adaptive_can_do_without_half_steps() -> None:
    assert Adaptive(tolerance=0.2, max_half_steps=3).without_half_steps() == Adaptive(tolerance=0.2, max_half_steps=0)
    assert [kind().without_half_steps() for kind in (Paper, Refresh, Async)] == [None] * 3


def test_full_is_always_full() -> None:
    policy = Full().begin(Sampler(50))
    assert {policy.plan(step).kind for step in range(50)} == {StepKind.FULL}


def test_doubled_branches_are_unconditional_then_conditional() -> None:
    branches = Branches(torch.tensor([[3.0]]), torch.tensor([[1.0]]))
    assert branches.doubled().tolist() == [[2.0], [3.0]]


def test_a_trace_has_the_window_and_its_reason() -> None:
    trace = Trace("paper")
    for kind, reason in zip("FFHHFHF", ["a", "a", "slope", "slope", "b", "slope", "b"], strict=True):
        trace.decisions.append(Decision({"F": StepKind.FULL, "H": StepKind.HALF}[kind], reason))
    assert (trace.tau1, trace.tau2, trace.tau1_reason) == (2, 6, "slope")
    assert trace.count(StepKind.HALF) == 3
    all_full = Trace("full", [Decision(StepKind.FULL, "full")] * 3)
    assert (all_full.tau1, all_full.tau2, all_full.tau1_reason) == (None, None, None)
