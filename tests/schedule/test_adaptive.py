"""Adaptive: steps chosen by the extrapolation error."""

import pytest
import torch

from hybridiff.schedule import Adaptive, Branches, StepKind
from hybridiff.schedule.adaptive import cheapest_run
from tests.schedule.drive import constant, curve, discrepancies, drive, sampler

F, H, S = StepKind.FULL, StepKind.HALF, StepKind.SKIP
EVEN = [1.0] * 9
LIMITS = {H: 4, S: 4}
no_discrepancy = discrepancies(lambda i: 0)


def test_predictable_steps_are_skipped_up_to_the_limit() -> None:
    seen = drive(Adaptive(), 20, curve(lambda i: 3 * i), curve(lambda i: -i), no_discrepancy)
    assert seen.kinds == "FFFFFSSSSFSSSSFSSSFF"
    assert [round(given.conditional[0, 0, 0, 0].item(), 3) for given in seen.given] == [3 * i for i in range(20)]


def test_unpredictable_steps_are_computed() -> None:
    wild = curve(lambda i: 50 * (-1) ** i)
    assert drive(Adaptive(max_half_steps=0), 20, wild, constant(0), no_discrepancy).kinds == "F" * 20
    assert drive(Adaptive(), 20, constant(0), wild, no_discrepancy).kinds == "F" * 20


def test_half_steps_where_only_the_difference_is_predictable() -> None:
    seen = drive(Adaptive(), 20, curve(lambda i: 50 * (-1) ** i), constant(1), no_discrepancy)
    assert seen.kinds[5:9] == "HHHH" and "S" not in seen.kinds
    assert [d.last for d in seen.decisions[5:9]] == [False, False, False, True]


def test_tolerance_trades_error_for_steps() -> None:
    bent = curve(lambda i: 0.02 * i * i)
    counts = [drive(Adaptive(tolerance=t), 50, bent, bent, no_discrepancy).kinds.count("F") for t in (0.05, 0.3, 2.0)]
    assert counts[0] > counts[1] > counts[2]


def test_few_steps_are_all_full() -> None:
    for steps in range(1, 7):
        assert drive(Adaptive(), steps, constant(1), constant(1), no_discrepancy).kinds == "F" * steps


@pytest.mark.parametrize(
    ("steps", "kinds"),
    [
        (30, "FFFFFSSFSSSSFSSSSFSSSSFSSSFSFF"),
        (29, "FFFFFSSFSSSSFSSSSFSSSSFSSSSFF"),  # two runs of 2 to the end would compute one step more
        (34, "FFFFFSSFSSSSFSSSSFSSSSFSSSSFSSSSFF"),
        (33, "FFFFFSSFSSSSFSSSSFSSSSFSSSSFSSSFF"),
    ],
)
def test_without_guidance_runs_grow_from_the_first_full_steps_and_shrink_to_the_last(steps: int, kinds: str) -> None:
    policy, seen = Adaptive().begin(sampler(steps, scale=1.0).part(0, 1.0, half_steps=False)), ""
    for step in range(steps):
        kind = policy.plan(step).kind
        seen += kind.value[0].upper()
        if kind is F:
            policy.full(step, Branches(torch.full((1, 1, 2, 2), 3.0 * step), torch.zeros(1, 1, 1, 1)), torch.zeros(1))
        else:
            assert policy.skip(step).conditional.flatten()[0].item() == 3 * step
    assert seen == kinds


def test_errors_of_the_difference_are_weighted_by_guidance() -> None:
    bent = curve(lambda i: 0.02 * i * i)
    policy_kinds = []
    for scale in (1.5, 12.0):
        schedule, full = Adaptive(), 0
        policy = schedule.begin(sampler(50, scale=scale))
        for step in range(50):
            kind = policy.plan(step).kind
            full += kind is F
            if kind is F:
                policy.full(step, Branches(torch.zeros(1, 1, 2, 2), bent(step)), torch.zeros(1))
            else:
                policy.skip(step) if kind is S else policy.half(step, torch.zeros(1, 1, 2, 2))
        policy_kinds.append(full)
    assert policy_kinds[0] < policy_kinds[1]


def test_the_cheapest_run_depends_on_both_errors() -> None:
    assert cheapest_run(0, 0, 1, LIMITS, EVEN) == (S,) * 4
    assert cheapest_run(0, 0, 1, {H: 4, S: 2}, EVEN[:3]) == (S, S)
    assert cheapest_run(0, 9, 1, LIMITS, EVEN) == ()
    assert cheapest_run(9, 0, 1, LIMITS, EVEN) == (H,) * 4
    assert cheapest_run(9, 0, 1, {H: 0, S: 4}, EVEN) == ()
    assert cheapest_run(0, 0, 1, LIMITS, [1.0]) == ()


def test_half_steps_on_stale_activations_replace_skips_only_where_predictions_cannot_be_extrapolated() -> None:
    for rate in (0.05, 0.1, 0.15):
        assert H not in cheapest_run(rate, 0, 1, LIMITS, EVEN, stale=True)
    assert H in cheapest_run(0.15, 0, 1, LIMITS, EVEN), "with guidance, a half step computes e_c anew"
    assert cheapest_run(9, 0, 1, LIMITS, EVEN, stale=True) == (H,) * 4


def test_a_run_is_chosen_where_its_cost_per_step_falls() -> None:
    # one skip: (1 + e^2) / 2 < 1 while e < 1; two: (1 + (3 e)^2) / 3 < (1 + e^2) / 2 while e < sqrt(1 / 15)
    assert cheapest_run(0, 1.01, 1, LIMITS, EVEN) == ()
    assert cheapest_run(0, 0.99, 1, LIMITS, EVEN) == (S,)
    assert cheapest_run(0, 0.26, 1, LIMITS, EVEN) == (S,)
    assert cheapest_run(0, 0.25, 1, LIMITS, EVEN) == (S, S)
    assert cheapest_run(0, 0.5, 2, LIMITS, EVEN) == (S, S)


def test_steps_that_move_the_latents_more_are_skipped_less() -> None:
    assert cheapest_run(0, 0.25, 1, LIMITS, [0, 1, 2, 2, 2]) == (S,)


def test_decisions_have_reasons() -> None:
    seen = drive(Adaptive(min_full_steps=3), 12, curve(lambda i: i), constant(1), no_discrepancy)
    assert seen.kinds == "FFFSSSSFSSFF"
    assert [d.reason for d in seen.decisions] == ["warm-up"] * 3 + ["error"] * 7 + ["end"] * 2
    assert [d.measure is None for d in seen.decisions] == [True] * 3 + [False] * 7 + [True] * 2
