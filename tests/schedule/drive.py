"""Runs a policy over synthetic predictions."""

from collections.abc import Callable

import torch
from torch import Tensor

from hybridiff.schedule import Branches, Decision, Sampler, Schedule, StepKind

Curve = Callable[[int], Tensor]


def sampler(steps: int, scheduler: str = "DDIMScheduler", denoiser: str = "UNet2DConditionModel", scale: float = 5.0) -> Sampler:
    """Uniform steps, each moving the latents by 1 / steps per unit of prediction."""
    even = (1 / steps,) * steps
    times = tuple(float(steps - i) for i in range(steps))
    return Sampler(steps, denoiser, scheduler, scale, times, even, tuple(-x for x in even))


def drive(schedule: Schedule, steps: int, conditional: Curve, difference: Curve, discrepancy: Curve) -> "Driven":
    """All decisions of a generation, and what the sampler was given at each step."""
    policy = schedule.begin(sampler(steps))
    decisions, given = [], []
    for step in range(steps):
        decision = policy.plan(step)
        true = Branches(conditional(step), difference(step))
        if decision.kind is StepKind.SKIP:
            given.append(policy.skip(step))
        elif decision.kind is StepKind.HALF:
            given.append(policy.half(step, true.conditional))
        else:
            given.append(policy.full(step, true, discrepancy(step)) or true)
        decisions.append(decision)
    return Driven(decisions, given)


class Driven:
    """What ``drive`` saw."""

    def __init__(self, decisions: list[Decision], given: list[Branches]) -> None:
        self.decisions, self.given = decisions, given

    @property
    def kinds(self) -> str:
        """A letter for each step."""
        return "".join(decision.kind.value[0].upper() for decision in self.decisions)


def constant(value: float, batch: int = 1) -> Curve:
    return lambda step: torch.full((batch, 1, 2, 2), value)


def curve(values: Callable[[int], float]) -> Curve:
    return lambda step: torch.full((1, 1, 2, 2), float(values(step)))


def discrepancies(values: Callable[[int], float]) -> Curve:
    return lambda step: torch.tensor([float(values(step))])
