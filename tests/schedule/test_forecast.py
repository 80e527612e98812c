"""Predictions, and paying back what they got wrong."""

import pytest
import torch

from hybridiff.schedule.forecast import Forecast, lagrange
from hybridiff.schedule.sampler import Sampler
from tests.schedule.drive import sampler


def value(*per_image: float) -> torch.Tensor:
    return torch.tensor(per_image).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()


def first(tensor: torch.Tensor | None) -> list[float]:
    assert tensor is not None
    return tensor[:, 0, 0, 0].tolist()


def test_the_first_value_is_carried_on() -> None:
    forecast = Forecast(sampler(10))
    assert forecast.compute(0, value(3)) == (None, None)
    assert first(forecast.predict(1)) == [3]


@pytest.mark.parametrize(("trust", "expected"), [(1.0, 9), (0.5, 7), (0.0, 5)])
def test_the_line_is_followed_as_far_as_it_is_trusted(trust: float, expected: float) -> None:
    forecast = Forecast(sampler(10), trust=trust)
    forecast.compute(0, value(1))
    forecast.compute(2, value(5))
    assert first(forecast.predict(4)) == [expected]


def test_times_count_not_steps() -> None:
    uneven = Sampler(4, times=(10.0, 9.0, 7.0, 3.0), gains=(1.0,) * 4)
    forecast = Forecast(uneven)
    forecast.compute(0, value(0))
    forecast.compute(1, value(1))
    assert first(forecast.predict(3)) == [7]


def test_calls_at_one_time_are_told_apart_from_a_slope() -> None:
    heun = Sampler(4, times=(9.0, 6.0, 6.0, 3.0), gains=(1.0,) * 4, effects=(-1.0,) * 4)
    forecast = Forecast(heun)
    for step, number in enumerate((0, 1, 2)):
        forecast.compute(step, value(number))
    assert first(forecast.predict(3)) == [2]


def test_trust_is_learnt_for_each_image() -> None:
    forecast = Forecast(sampler(20))
    for step in range(6):  # a line; a quantity that goes half as far each time; one that turns back
        forecast.compute(step, value(step, 2 - 0.5 ** (step - 1), (-1) ** step))
    steady, halving, turning = first(forecast.predict(6))
    assert steady == pytest.approx(6)
    assert halving == pytest.approx(2 - 0.5**5)
    assert turning == -1  # carried on, not thrown about


def test_errors_are_of_the_prediction_that_would_have_been_made() -> None:
    forecast = Forecast(sampler(10), trust=1.0)
    forecast.compute(0, value(0))
    _, error = forecast.compute(1, value(3))
    assert first(error) == [3]
    _, error = forecast.compute(2, value(8))
    assert first(error) == [2]


def test_what_predictions_got_wrong_is_paid_back_to_the_latents() -> None:
    forecast = Forecast(sampler(10), trust=0.0)
    truth = [float(i * i) for i in range(8)]  # a parabola: three points tell all of it
    paid = 0.0
    for step in range(8):
        if step in (3, 4, 6):
            paid += first(forecast.predict(step))[0]
        else:
            instead, _ = forecast.compute(step, value(truth[step]))
            paid += truth[step] if instead is None else first(instead)[0]
    assert paid == pytest.approx(sum(truth))  # the latents moved as far as if every step had been computed


def test_payment_counts_what_a_step_does_to_the_final_latents() -> None:
    weighted = Sampler(4, times=(3.0, 2.0, 1.0, 0.0), gains=(1.0,) * 4, effects=(1.0, 4.0, 2.0, 1.0))
    forecast = Forecast(weighted, trust=0.0)
    forecast.compute(0, value(0))
    forecast.predict(1)  # 0 where 1 is on the line from 0 to 2
    instead, _ = forecast.compute(2, value(2))
    assert first(instead) == [2 + 1 * 4 / 2]


def test_a_step_that_does_little_leaves_the_payment_to_the_next() -> None:
    uneven = Sampler(4, times=(3.0, 2.0, 1.0, 0.0), gains=(1.0,) * 4, effects=(1.0, 1.0, 0.1, 1.0))
    forecast = Forecast(uneven, trust=0.0)
    forecast.compute(0, value(0))
    forecast.predict(1)
    assert forecast.compute(2, value(2))[0] is None
    instead, _ = forecast.compute(3, value(3))
    assert first(instead) == [3 + 1]


def test_nothing_is_paid_where_effects_are_unknown() -> None:
    unknown = Sampler(4, times=(3.0, 2.0, 1.0, 0.0), gains=(0.25,) * 4)
    forecast = Forecast(unknown)
    forecast.compute(0, value(0))
    forecast.predict(1)
    assert forecast.compute(2, value(2))[0] is None


def test_half_precision_is_taken_in_as_single() -> None:
    forecast = Forecast(sampler(10))
    forecast.compute(0, value(1).bfloat16())
    assert forecast.predict(1).dtype == torch.float32


def test_lagrange_weights_give_back_polynomials() -> None:
    weights = lagrange((0.0, 1.0, 3.0), 2.0)
    assert sum(w * x**2 for w, x in zip(weights, (0, 1, 3), strict=True)) == pytest.approx(4)
    assert lagrange((2.0, 1.0, 1.0), 1.0) == [0, 0, 1]
