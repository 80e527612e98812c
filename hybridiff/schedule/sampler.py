"""What a schedule may know of the sampler: how far each step moves the latents, per unit of the denoiser's prediction."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_LOG = logging.getLogger(__name__)
IMPULSE = 1e-3  # small enough that no scheduler clips it


@dataclass(frozen=True)
class Sampler:
    """The sampler of one generation.

    Args:
        steps: Denoiser calls of the generation.
        denoiser: Class name of the network.
        scheduler: Class name of the Diffusers scheduler.
        guidance_scale: Weight w of classifier-free guidance.
        times: Of each call, in the scheduler's own unit; predictions are functions of them.
        gains: How far a unit of prediction at a step moves the next model input.
        effects: How far it moves the final latents, if the predictions of all other steps stay as they are. Empty where that
            is not known; nothing can then be paid back.
    """

    steps: int
    denoiser: str = ""
    scheduler: str = ""
    guidance_scale: float = 1.0
    times: tuple[float, ...] = ()
    gains: tuple[float, ...] = ()
    effects: tuple[float, ...] = ()


class SamplerReader:
    """Reads samplers; one that was seen before, with the same timesteps, is not run again.

    Args:
        quiet: Another process tells the log what this one would.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._seen: dict[tuple[str, ...], tuple[tuple[float, ...], tuple[float, ...]]] = {}
        self._warned = quiet

    def read(self, scheduler: Any, denoiser: str, guidance_scale: float, first: int = 0, calls: int | None = None) -> Sampler:
        """The sampler of a pipeline whose timesteps are set; the scheduler itself is left as it is.

        A pipeline may run over a part of the timesteps: ``calls`` of them, all by default, from ``first`` on.

        Every sampler is linear in the predictions, so a copy of the scheduler is run on one impulse per step, whatever its
        formula: several orders, two calls a step, any prediction type. Where that gives nothing, all steps count alike, and the
        log says so, once.
        """
        every = [float(time) for time in scheduler.timesteps.tolist()]
        last = len(every) if calls is None else min(first + calls, len(every))
        times, name = tuple(every[first:last]), type(scheduler).__name__
        key = (name, repr(sorted(scheduler.config.items())), repr(every), repr((first, last)))
        if key not in self._seen:
            self._seen = {key: self._respond(scheduler, first, last)}  # the last one only: a job has one sampler
        return Sampler(len(times), denoiser, name, guidance_scale, times, *self._seen[key])

    def _respond(self, scheduler: Any, first: int, last: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        try:
            return _impulse_responses(scheduler, first, last)
        except Exception as error:  # whatever a scheduler may raise: what it does to the latents is then not known
            if not self._warned:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                _LOG.warning("%s: all steps count alike, and nothing is paid back (%s)", type(scheduler).__name__, reason)
            self._warned = True
            return (1 / (last - first),) * (last - first), ()


def _impulse_responses(scheduler: Any, first: int, last: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The gains and effects of a ``Sampler``.

    Raises:
        Exception: whatever the scheduler does; ``ValueError`` where its latents do not follow the predictions.
    """
    import torch

    steps = last - first
    moved, final = _run(scheduler, first, torch.eye(steps) * IMPULSE)
    still, final_still = _run(scheduler, first, torch.zeros(steps, steps))  # a stochastic sampler's noise, the same again
    gains, effects = (moved - still).abs() / IMPULSE, (final - final_still) / IMPULSE
    if not (gains.isfinite().all() and effects.isfinite().all() and gains.any() and effects.any()):
        raise ValueError("its latents are not finite, or no prediction moves them")
    gains = gains.where(gains > 0, gains.mean())  # a call that only prepares the next one
    return tuple(gains.tolist()), tuple(effects.tolist())


def _run(scheduler: Any, first: int, predictions: Tensor) -> tuple[Tensor, Tensor]:
    """Samples one number per column of predictions (steps, columns), from 0, over the timesteps from ``first`` on.

    Returns:
        Column i just after step i, as the denoiser would see it: (steps,); and all columns at the end: (columns,).
    """
    import torch

    scheduler = _on_cpu(scheduler)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    latents, moved = torch.zeros(predictions.shape[1], 1, 1, 1), []
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed the GPUs too
        for i, time in enumerate(scheduler.timesteps[first : first + len(predictions)]):
            seen = scheduler.scale_model_input(latents, time) if hasattr(scheduler, "scale_model_input") else latents
            moved += [seen.flatten()[i - 1]] if i else []
            latents = scheduler.step(predictions[i].view(-1, 1, 1, 1), time, latents, return_dict=False)[0]
    return torch.stack([*moved, latents.flatten()[-1]]), latents.flatten()


def _on_cpu(scheduler: Any) -> Any:
    """A copy with all tensors in main memory, where it is run: some schedulers keep theirs on the pipeline's device."""
    from torch import Tensor
    from torch.utils._pytree import tree_map_only

    moved = copy.copy(scheduler)
    vars(moved).update(tree_map_only(Tensor, Tensor.cpu, vars(scheduler)))
    return copy.deepcopy(moved)
