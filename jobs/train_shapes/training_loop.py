"""One training loop for every stage: seeded per step, averaged weights, resumable from its checkpoint."""

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hybridiff.errors import UsageError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopConfig:
    """Length and learning rate of a stage."""

    steps: int
    learning_rate: float
    warm_up_share: float = 0.02  # of all steps, linear
    decay_share: float = 0.3  # of all steps at the end, linear to zero
    ema_decay: float = 0.999
    checkpoint_every_s: float = 60.0
    muon: str | None = None  # regular expression for names of matrices that Muon trains; AdamW trains everything else


class StepRandom:
    """Random generators of one step: the same for a given seed and step, also after a resume."""

    def __init__(self, seed: int, step: int) -> None:
        self.numpy = np.random.default_rng((seed, step))
        self.torch = torch.Generator().manual_seed(int(self.numpy.integers(2**62)))


LossFunction = Callable[[int, StepRandom], Tensor]


def learning_rate_factor(step: int, config: LoopConfig) -> float:
    """Linear warm-up, a plateau, then a linear decay to zero."""
    warm_up = max(1, round(config.warm_up_share * config.steps))
    decay = max(1, round(config.decay_share * config.steps))
    return min(1.0, (step + 1) / warm_up, (config.steps - step) / decay)


def build_optimizers(model: nn.Module, config: LoopConfig) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon (https://kellerjordan.github.io/posts/muon) at twice its learning rate for the matrices of ``config``."""
    named = dict(model.named_parameters())
    matrices = [name for name, p in named.items() if p.ndim == 2 and config.muon and re.search(config.muon, name)]
    rest = [p for name, p in named.items() if name not in matrices]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    ]
    if matrices:
        weights = [named[name] for name in matrices]
        rate = 2 * config.learning_rate
        optimizers.append(torch.optim.Muon(weights, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def train(name: str, model: nn.Module, loss_of: LossFunction, config: LoopConfig, work: Path, seed: int) -> None:
    """Trains ``model`` in position and leaves the averaged weights in it.

    Args:
        name: name of the stage; its checkpoint is ``work/<name>.pt``, and a finished one is loaded, not trained again.
        model: module to train.
        loss_of: function of a step's number and its randomness that returns the scalar loss.
        config: length and learning rate.
        work: directory of the checkpoint.
        seed: seed of all randomness.

    Raises:
        UsageError: the checkpoint is of another seed.
    """
    checkpoint = work / f"{name}.pt"
    optimizers = build_optimizers(model, config)
    average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=next(model.parameters()).device, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        average, start = state["average"], state["step"]
        if state["seed"] != seed:
            raise UsageError(f"seed is {seed}; allowed: {state['seed']}, the seed of {checkpoint}, or another directory")
        log.info("%s: resumed at step %d of %d", name, start, config.steps)

    def save(step: int) -> None:
        state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "average": average}
        progress = {"step": step, "seed": seed}
        torch.save(state | progress, checkpoint.with_suffix(".tmp"))
        checkpoint.with_suffix(".tmp").replace(checkpoint)

    last_save, losses = time.monotonic(), []
    for step in range(start, config.steps):
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = group["initial_lr"] * learning_rate_factor(step, config)
        loss = loss_of(step, StepRandom(seed, step))
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        decay = min(config.ema_decay, (1 + step) / (10 + step))
        for key, value in model.state_dict().items():
            average[key].lerp_(value, 1 - decay) if value.is_floating_point() else average[key].copy_(value)
        losses.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == config.steps:
            log.info("%s: step %d of %d, loss %.4f", name, step + 1, config.steps, sum(losses) / len(losses))
            losses.clear()
        if time.monotonic() - last_save > config.checkpoint_every_s or step + 1 == config.steps:
            save(step + 1)
            last_save = time.monotonic()
    model.load_state_dict(average)
