"""The sampler as schedules see it: how far each step moves the latents, per unit of the denoiser's prediction."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_LOG = logging.getLogger(__name__)
IMPULSE = 1e-3  # prediction of the impulse response; small enough that no scheduler clips it


@dataclass(frozen=True)
class Sampler:
    """The sampler of one generation.

    Args:
        steps: number of denoiser calls of the generation.
        denoiser: class name of the network.
        scheduler: class name of the Diffusers scheduler.
        guidance_scale: weight w of classifier-free guidance.
        times: timestep of each call, in the scheduler's own unit.
        gains: displacement of the next model input per unit of prediction, for each call.
        effects: displacement of the final latents per unit of prediction, with the predictions of all other calls unchanged;
            empty where unknown, and errors are not compensated then.
        half_steps: whether half steps save anything; without guidance they do where a group runs segments of the network.
    """

    steps: int
    denoiser: str = ""
    scheduler: str = ""
    guidance_scale: float = 1.0
    times: tuple[float, ...] = ()
    gains: tuple[float, ...] = ()
    effects: tuple[float, ...] = ()
    half_steps: bool = True

    def part(self, first: int, guidance_scale: float, half_steps: bool = True) -> Sampler:
        """The sampler of the calls from ``first`` on, with the given guidance."""
        return replace(
            self,
            steps=self.steps - first,
            guidance_scale=guidance_scale,
            times=self.times[first:],
            gains=self.gains[first:],
            effects=self.effects[first:],
            half_steps=half_steps,
        )


class SamplerReader:
    """Computes samplers from Diffusers schedulers; the last one is cached.

    Args:
        quiet: whether to log nothing, as on ranks other than the log rank.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._seen: dict[tuple[str, ...], tuple[tuple[float, ...], tuple[float, ...]]] = {}
        self._warned = quiet

    def read(self, scheduler: Any, denoiser: str, guidance_scale: float, first: int = 0, calls: int | None = None) -> Sampler:
        """The sampler of a scheduler whose timesteps are set; the scheduler is not modified.

        Every sampler is linear in the predictions, so a copy of the scheduler is run on one impulse per step. This covers any
        formula: multistep methods, two calls per step, any prediction type. Where it fails, all steps get equal gains and no
        effects, with one warning in the log.

        Args:
            scheduler: Diffusers scheduler.
            denoiser: class name of the network.
            guidance_scale: weight w of classifier-free guidance.
            first: index of the first timestep of the generation.
            calls: number of denoiser calls from there on; all that are left by default.
        """
        every = [float(time) for time in scheduler.timesteps.tolist()]
        last = len(every) if calls is None else min(first + calls, len(every))
        times, name = tuple(every[first:last]), type(scheduler).__name__
        key = (name, repr(sorted(scheduler.config.items())), repr(every), repr((first, last)))
        if key not in self._seen:
            self._seen = {key: self._respond(scheduler, first, last)}  # a job has one sampler
        return Sampler(len(times), denoiser, name, guidance_scale, times, *self._seen[key])

    def _respond(self, scheduler: Any, first: int, last: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        try:
            return _impulse_responses(scheduler, first, last)
        except Exception as error:  # schedulers raise anything; the response is unknown then
            if not self._warned:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                _LOG.warning(
                    "%s: its response to predictions is unknown, so all steps are weighted alike without error compensation (%s)",
                    type(scheduler).__name__,
                    reason,
                )
            self._warned = True
            return (1 / (last - first),) * (last - first), ()


def _impulse_responses(scheduler: Any, first: int, last: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Gains and effects of a ``Sampler``.

    Raises:
        Exception: any error of the scheduler; ``ValueError`` where the latents are not finite or no prediction moves them.
    """
    import torch

    steps = last - first
    moved, final = _run(scheduler, first, torch.eye(steps) * IMPULSE)
    still, final_still = _run(scheduler, first, torch.zeros(steps, steps))  # response to a stochastic sampler's noise alone
    gains, effects = (moved - still).abs() / IMPULSE, (final - final_still) / IMPULSE
    if not (gains.isfinite().all() and effects.isfinite().all() and gains.any() and effects.any()):
        raise ValueError("its latents are not finite, or no prediction moves them")
    gains = gains.where(gains > 0, gains.mean())  # a call that only prepares the next one
    return tuple(gains.tolist()), tuple(effects.tolist())


def _run(scheduler: Any, first: int, predictions: Tensor) -> tuple[Tensor, Tensor]:
    """Runs a copy of the scheduler from latents 0, one independent latent per column of the predictions.

    Args:
        scheduler: Diffusers scheduler with timesteps set.
        first: index of the first timestep.
        predictions: (steps, columns).

    Returns:
        Latent i as the denoiser would get it after step i, (steps,); and all final latents, (columns,).
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
    """A deep copy with all tensors in main memory; some schedulers keep theirs on the pipeline's device."""
    from torch import Tensor
    from torch.utils._pytree import tree_map_only

    moved = copy.copy(scheduler)
    vars(moved).update(tree_map_only(Tensor, Tensor.cpu, vars(scheduler)))
    return copy.deepcopy(moved)
