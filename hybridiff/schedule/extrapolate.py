"""Extrapolation of predictions that are not computed, with error compensation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hybridiff.schedule.base import Branches
from hybridiff.schedule.sampler import Sampler

if TYPE_CHECKING:
    from torch import Tensor

NODES = 3  # computed values that the compensation interpolates through
MIN_EFFECT = 1 / 3  # least effect of a compensating step on the final latents, relative to the extrapolated steps' largest


class Extrapolation:
    """One quantity over the steps of a generation: the conditional prediction e_c, or the guidance difference D.

    It is extrapolated along the line through its last two computed values, with the slope multiplied by a damping factor: 0
    carries the last value on, 1 follows the line. The factor is fitted by least squares, for each image, to the steps so far.

    Once the quantity is computed again, the values in between are known better by interpolation. The difference is compensated:
    it is added to the present value, weighted by the steps' effects on the final latents. As samplers are linear in the
    predictions, the latents then end up where the interpolated values would have led them.

    Args:
        sampler: times and effects of the steps.
        damping: fixed damping factor of the slope in [0, 1]; fitted if None.
        compensate: whether errors are compensated; needs the sampler's effects.
        memory: weight of a step in the fit, relative to the step after it, in [0, 1].
    """

    def __init__(self, sampler: Sampler, damping: float | None = None, compensate: bool = True, memory: float = 0.7) -> None:
        self.times = sampler.times
        self.effects = sampler.effects if compensate else ()
        self.memory = memory
        self._fixed_damping = damping
        self._fit: tuple[Tensor, Tensor] | None = None  # sums of slope x change and of slope x slope, (batch, 1, 1, 1)
        self._computed: list[tuple[int, Tensor]] = []
        self._extrapolated: dict[int, Tensor] = {}

    @property
    def last(self) -> int:
        """The last step at which the quantity was computed; -1 before the first."""
        return self._computed[-1][0] if self._computed else -1

    def extrapolate(self, step: int) -> Tensor:
        """The quantity at a step that does not compute it, in single precision; the sampler must get this value."""
        value = self._computed[-1][1] + self._damping() * self._slope(step)
        self._extrapolated[step] = value
        return value

    def observe(self, step: int, value: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Adds a computed value, (batch, channels, height, width).

        Returns:
            The compensated value for the sampler, None where there is nothing to compensate; and the error that an extrapolation
            to this step would have had, None at the first value. Both are of the value's shape, in single precision.
        """
        value = value.float()
        error = None
        if self._computed:
            slope, change = self._slope(step), value - self._computed[-1][1]
            error = change - self._damping() * slope
            if len(self._computed) > 1:
                self._update_fit(slope, change)
        self._computed = [*self._computed[1 - NODES :], (step, value)]
        correction = self._correction(step)
        if correction is not None or not self.effects:
            self._extrapolated = {}
        return (None if correction is None else value + correction), error

    def _slope(self, step: int) -> Tensor:
        """Change along the line through the last two computed values, from the last of them to ``step``."""
        import torch

        (before, earlier), (last, later) = ([*self._computed[-1:], *self._computed])[-2:]
        between = self.times[last] - self.times[before]
        return torch.zeros_like(later) if between == 0 else (later - earlier) * ((self.times[step] - self.times[last]) / between)

    def _damping(self) -> float | Tensor:
        if self._fixed_damping is not None:
            return self._fixed_damping
        return 1.0 if self._fit is None else (self._fit[0] / self._fit[1].clamp_min(1e-20)).clamp(0, 1)

    def _update_fit(self, slope: Tensor, change: Tensor) -> None:
        """Least squares of change = damping x slope, with each step in units of its own slope."""
        axes = tuple(range(1, slope.ndim))
        scale = (slope * slope).sum(axes, keepdim=True)
        fit = (slope * change).sum(axes, keepdim=True) / scale.clamp_min(1e-20), (scale > 0).float()
        old = self._fit
        self._fit = fit if old is None else (self.memory * old[0] + fit[0], self.memory * old[1] + fit[1])

    def _correction(self, step: int) -> Tensor | None:
        """Interpolated minus extrapolated values since the last compensation, in units of the present step's effect."""
        import torch

        if not self.effects or not self._extrapolated:
            return None
        if abs(self.effects[step]) <= MIN_EFFECT * max(abs(self.effects[i]) for i in self._extrapolated):
            return None  # the correction would be too large for this step; the next computed one makes it
        nodes = [self.times[i] for i, _ in self._computed]
        correction = torch.zeros_like(self._computed[-1][1])
        for i, extrapolated in self._extrapolated.items():
            weights = lagrange(nodes, self.times[i])
            interpolated = sum(weight * value for weight, (_, value) in zip(weights, self._computed, strict=True))
            correction += (interpolated - extrapolated) * (self.effects[i] / self.effects[step])
        return correction


def lagrange(nodes: Sequence[float], at: float) -> list[float]:
    """Weights of the values at ``nodes`` in the polynomial through them, evaluated at ``at``; of equal nodes the last counts."""
    unique = {node: i for i, node in enumerate(nodes)}
    weights = [0.0] * len(nodes)
    for node, i in unique.items():
        weights[i] = 1.0
        for other in unique:
            weights[i] *= (at - other) / (node - other) if other != node else 1.0
    return weights


class ExtrapolatingPolicy:
    """Base of policies that extrapolate e_c and D separately; subclasses plan the kinds of steps.

    Args:
        sampler: sampler of the generation.
        damping: see ``Extrapolation``.
        compensate: see ``Extrapolation``.
    """

    def __init__(self, sampler: Sampler, damping: float | None = None, compensate: bool = True) -> None:
        self.sampler = sampler
        self.conditional = Extrapolation(sampler, damping, compensate)
        self.difference = Extrapolation(sampler, damping, compensate)

    def full(self, step: int, branches: Branches, discrepancy: Tensor) -> Branches | None:
        """Observes both quantities; returns the compensated ones, None where there is nothing to compensate."""
        conditional, error_c = self.conditional.observe(step, branches.conditional)
        difference, error_d = self.difference.observe(step, branches.difference)
        if error_c is not None and error_d is not None:
            self.observe_errors(step, error_c, error_d)
        if conditional is None and difference is None:
            return None
        return Branches(
            branches.conditional if conditional is None else conditional,
            branches.difference if difference is None else difference,
        )

    def observe_errors(self, step: int, error_c: Tensor, error_d: Tensor) -> None:
        """Called at each full step but the first, with the errors that extrapolations of e_c and D to it would have had."""

    def half(self, step: int, conditional: Tensor) -> Branches:
        """The computed e_c, compensated, with D extrapolated."""
        compensated, _ = self.conditional.observe(step, conditional)
        return Branches(conditional if compensated is None else compensated, self.difference.extrapolate(step))

    def skip(self, step: int) -> Branches:
        """e_c and D extrapolated."""
        return Branches(self.conditional.extrapolate(step), self.difference.extrapolate(step))
