"""Extrapolation and error compensation."""

import pytest
import torch

from hybridiff.schedule.extrapolate import Extrapolation, lagrange
from hybridiff.schedule.sampler import Sampler
from tests.schedule.drive import sampler


def value(*per_image: float) -> torch.Tensor:
    return torch.tensor(per_image).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()


def first(tensor: torch.Tensor | None) -> list[float]:
    assert tensor is not None
    return tensor[:, 0, 0, 0].tolist()


def test_a_single_value_is_carried_on() -> None:
    quantity = Extrapolation(sampler(10))
    assert quantity.observe(0, value(3)) == (None, None)
    assert first(quantity.extrapolate(1)) == [3]


@pytest.mark.parametrize(("damping", "expected"), [(1.0, 9), (0.5, 7), (0.0, 5)])
def test_the_slope_is_multiplied_by_the_damping_factor(damping: float, expected: float) -> None:
    quantity = Extrapolation(sampler(10), damping=damping)
    quantity.observe(0, value(1))
    quantity.observe(2, value(5))
    assert first(quantity.extrapolate(4)) == [expected]


def test_extrapolation_is_over_times_not_steps() -> None:
    uneven = Sampler(4, times=(10.0, 9.0, 7.0, 3.0), gains=(1.0,) * 4)
    quantity = Extrapolation(uneven)
    quantity.observe(0, value(0))
    quantity.observe(1, value(1))
    assert first(quantity.extrapolate(3)) == [7]


def test_two_calls_at_one_time_give_no_slope() -> None:
    heun = Sampler(4, times=(9.0, 6.0, 6.0, 3.0), gains=(1.0,) * 4, effects=(-1.0,) * 4)
    quantity = Extrapolation(heun)
    for step, number in enumerate((0, 1, 2)):
        quantity.observe(step, value(number))
    assert first(quantity.extrapolate(3)) == [2]


def test_damping_is_fitted_for_each_image() -> None:
    quantity = Extrapolation(sampler(20))
    for step in range(6):  # a line; a quantity that goes half as far each time; one that turns back
        quantity.observe(step, value(step, 2 - 0.5 ** (step - 1), (-1) ** step))
    steady, halving, turning = first(quantity.extrapolate(6))
    assert steady == pytest.approx(6)
    assert halving == pytest.approx(2 - 0.5**5)
    assert turning == -1  # carried on, not thrown about


def test_errors_are_those_of_an_extrapolation_to_the_step() -> None:
    quantity = Extrapolation(sampler(10), damping=1.0)
    quantity.observe(0, value(0))
    _, error = quantity.observe(1, value(3))
    assert first(error) == [3]
    _, error = quantity.observe(2, value(8))
    assert first(error) == [2]


def test_errors_are_compensated_in_the_latents() -> None:
    quantity = Extrapolation(sampler(10), damping=0.0)
    truth = [float(i * i) for i in range(8)]  # a parabola: three points determine it
    total = 0.0
    for step in range(8):
        if step in (3, 4, 6):
            total += first(quantity.extrapolate(step))[0]
        else:
            instead, _ = quantity.observe(step, value(truth[step]))
            total += truth[step] if instead is None else first(instead)[0]
    assert total == pytest.approx(sum(truth))  # the latents moved as far as if every step had been computed


def test_corrections_are_weighted_by_effects_on_the_final_latents() -> None:
    weighted = Sampler(4, times=(3.0, 2.0, 1.0, 0.0), gains=(1.0,) * 4, effects=(1.0, 4.0, 2.0, 1.0))
    quantity = Extrapolation(weighted, damping=0.0)
    quantity.observe(0, value(0))
    quantity.extrapolate(1)  # 0 where 1 is on the line from 0 to 2
    instead, _ = quantity.observe(2, value(2))
    assert first(instead) == [2 + 1 * 4 / 2]


def test_a_step_with_little_effect_leaves_the_correction_to_the_next() -> None:
    uneven = Sampler(4, times=(3.0, 2.0, 1.0, 0.0), gains=(1.0,) * 4, effects=(1.0, 1.0, 0.1, 1.0))
    quantity = Extrapolation(uneven, damping=0.0)
    quantity.observe(0, value(0))
    quantity.extrapolate(1)
    assert quantity.observe(2, value(2))[0] is None
    instead, _ = quantity.observe(3, value(3))
    assert first(instead) == [3 + 1]


def test_steps_whose_predictions_a_sampler_clips_away_are_not_compensated() -> None:
    clipped = Sampler(4, times=(3.0, 2.0, 1.0, 0.0), gains=(1.0,) * 4, effects=(0.0, 0.0, 0.0, 1.0))
    quantity = Extrapolation(clipped, damping=0.0)
    quantity.observe(0, value(0))
    quantity.extrapolate(1)
    assert quantity.observe(2, value(2))[0] is None


def test_errors_are_not_compensated_where_effects_are_unknown() -> None:
    unknown = Sampler(4, times=(3.0, 2.0, 1.0, 0.0), gains=(0.25,) * 4)
    quantity = Extrapolation(unknown)
    quantity.observe(0, value(0))
    quantity.extrapolate(1)
    assert quantity.observe(2, value(2))[0] is None


def test_half_precision_is_observed_in_single() -> None:
    quantity = Extrapolation(sampler(10))
    quantity.observe(0, value(1).bfloat16())
    assert quantity.extrapolate(1).dtype == torch.float32


def test_lagrange_weights_reproduce_polynomials() -> None:
    weights = lagrange((0.0, 1.0, 3.0), 2.0)
    assert sum(w * x**2 for w, x in zip(weights, (0, 1, 3), strict=True)) == pytest.approx(4)
    assert lagrange((2.0, 1.0, 1.0), 1.0) == [0, 0, 1]
