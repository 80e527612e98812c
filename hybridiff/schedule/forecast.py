"""Predicting a quantity that was not computed, and paying back what the predictions got wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hybridiff.schedule.sampler import Sampler

if TYPE_CHECKING:
    from torch import Tensor

KEPT = 3  # computed values that a correction is interpolated through
MUCH = 1 / 3  # of the effect of a predicted step: what the step that pays for it must have at least


class Forecast:
    """A quantity over the steps of one generation: the conditional prediction e_c, or the guidance difference D.

    Predicted is the line through the last two computed values, its slope multiplied by the trust that would have served best so
    far, fitted for each image: 0 is the last value carried on, 1 the line. When a value is computed again, the steps between
    are known better than they were predicted, by interpolation. What the sampler was misled by is then paid back: added to
    the present value so that, linear as samplers are, the latents arrive where they would have.

    Args:
        sampler: Its times and effects.
        trust: A fixed share of the slope in [0, 1]; by default it is fitted.
        pay_back: Whether errors are paid back, where the sampler's effects are known.
        memory: By how much an earlier step counts less than the one after it when the trust is fitted.
    """

    def __init__(self, sampler: Sampler, trust: float | None = None, pay_back: bool = True, memory: float = 0.7) -> None:
        self.times = sampler.times
        self.effects = sampler.effects if pay_back else ()
        self.memory = memory
        self._fixed_trust = trust
        self._fit: tuple[Tensor, Tensor] | None = None  # sums of slope x change and of slope x slope, (batch, 1, 1, 1)
        self._computed: list[tuple[int, Tensor]] = []
        self._predicted: dict[int, Tensor] = {}

    @property
    def last(self) -> int:
        """The last step at which the quantity was computed; -1 before."""
        return self._computed[-1][0] if self._computed else -1

    def predict(self, step: int) -> Tensor:
        """The quantity at a step, as the sampler will be told it."""
        value = self._computed[-1][1] + self._trust() * self._slope(step)
        self._predicted[step] = value
        return value

    def compute(self, step: int, value: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Takes in a computed value: what the sampler is to get instead, and how wrong a prediction would have been.

        Both are single precision, of the value's shape; None where nothing is owed, and at the first value.
        """
        value = value.float()
        error = None
        if self._computed:
            slope, change = self._slope(step), value - self._computed[-1][1]
            error = change - self._trust() * slope
            if len(self._computed) > 1:
                self._learn(slope, change)
        self._computed = [*self._computed[1 - KEPT :], (step, value)]
        owed = self._owed(step)
        if owed is not None or not self.effects:
            self._predicted = {}
        return (None if owed is None else value + owed), error

    def _slope(self, step: int) -> Tensor:
        """By how much the line through the last two values moves on from the last one until a step."""
        import torch

        (before, earlier), (last, later) = ([*self._computed[-1:], *self._computed])[-2:]
        between = self.times[last] - self.times[before]
        return torch.zeros_like(later) if between == 0 else (later - earlier) * ((self.times[step] - self.times[last]) / between)

    def _trust(self) -> float | Tensor:
        if self._fixed_trust is not None:
            return self._fixed_trust
        return 1.0 if self._fit is None else (self._fit[0] / self._fit[1].clamp_min(1e-20)).clamp(0, 1)

    def _learn(self, slope: Tensor, change: Tensor) -> None:
        """Least squares of change = trust x slope, each step in units of its own slope."""
        axes = tuple(range(1, slope.ndim))
        scale = (slope * slope).sum(axes, keepdim=True)
        fit = (slope * change).sum(axes, keepdim=True) / scale.clamp_min(1e-20), (scale > 0).float()
        old = self._fit
        self._fit = fit if old is None else (self.memory * old[0] + fit[0], self.memory * old[1] + fit[1])

    def _owed(self, step: int) -> Tensor | None:
        """What the predictions since the last computed value got wrong, in units of the present one."""
        if not self.effects or not self._predicted:
            return None
        if abs(self.effects[step]) < MUCH * max(abs(self.effects[i]) for i in self._predicted):
            return None  # it would take too much of what this step can do; the next one pays
        nodes = [self.times[i] for i, _ in self._computed]
        import torch

        owed = torch.zeros_like(self._computed[-1][1])
        for i, predicted in self._predicted.items():
            weights = lagrange(nodes, self.times[i])
            known = sum(weight * value for weight, (_, value) in zip(weights, self._computed, strict=True))
            owed += (known - predicted) * (self.effects[i] / self.effects[step])
        return owed


def lagrange(nodes: Sequence[float], at: float) -> list[float]:
    """Weights of the values at the nodes in the polynomial through them. Of nodes at one place, the last one counts."""
    apart = {node: i for i, node in enumerate(nodes)}
    weights = [0.0] * len(nodes)
    for node, i in apart.items():
        weights[i] = 1.0
        for other in apart:
            weights[i] *= (at - other) / (node - other) if other != node else 1.0
    return weights
