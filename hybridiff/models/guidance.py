"""Classifier-free guidance in stock pipelines: where its scale is known, and the channels of a prediction that it applies to."""

import inspect
from typing import Any

import torch
from torch import Tensor

from hybridiff.config import SamplingConfig
from hybridiff.models.families import family_of

SCALES = (1.0, 100.0)  # a learned scale beyond these is noise: the branches are then equal


def reports_guidance(pipeline: type) -> bool:
    """Whether nobody needs to give the guidance scale: the pipeline reports it in a run, or it is learned from the first step."""
    family = family_of(pipeline)
    if family.calls == "branches":
        return True
    if family.calls == "doubled" or family.scale is None:
        return family.scale is not None
    return hasattr(pipeline, family.scale) and hasattr(pipeline, "do_classifier_free_guidance")


def guidance_weight(pipeline: Any) -> float | None:
    """The weight w of guidance in the present run, 1 where guidance is off; None where the pipeline has no attribute for it."""
    family = family_of(type(pipeline))
    scale = getattr(pipeline, family.scale, None) if family.scale is not None else None
    if scale is None:
        return None
    weight = float(scale) + family.scale_offset
    return weight if getattr(pipeline, "do_classifier_free_guidance", weight > 1) else 1.0


def refused_negative_prompts(pipeline: type, sampling: SamplingConfig, distilled: bool) -> str | None:
    """What is allowed in place of a negative prompt where it would change nothing; None where it has an effect.

    Args:
        pipeline: class of the pipeline.
        sampling: guidance scale and the pipeline's own options.
        distilled: whether guidance is distilled into the network, so that there is no unconditional branch.
    """
    parameters = inspect.signature(pipeline.__call__).parameters
    if "negative_prompt" not in parameters:
        return f"none with {pipeline.__name__}"
    if "true_cfg_scale" in parameters:  # guidance_scale, where there is one, is an input of the network
        scale = sampling.options.get("true_cfg_scale", parameters["true_cfg_scale"].default)
        needed = "none unless sampling.options has a true_cfg_scale above 1, without which it changes nothing"
        return None if isinstance(scale, int | float) and scale > 1 else needed
    if distilled:
        return "none with a model that has its guidance distilled into the network, where it changes nothing"
    offset = family_of(pipeline).scale_offset
    if "guidance_scale" in parameters and sampling.guidance_scale + offset <= 1:
        return f"none with sampling.guidance_scale at {1 - offset:g} or below, where it changes nothing"
    return None


def asks_for_second_branch(sampling: SamplingConfig) -> bool:
    """Whether a second branch is asked for, which pipelines leave out without a negative prompt, an empty one at least."""
    scale = sampling.options.get("true_cfg_scale")
    return isinstance(scale, int | float) and scale > 1


def clamped_weight(weight: float | None) -> float:
    """A fitted weight within ``SCALES``, the largest where it is None."""
    return SCALES[1] if weight is None else min(max(weight, SCALES[0]), SCALES[1])


def fitted_weight(before: Tensor, after: Tensor, unconditional: Tensor, conditional: Tensor) -> float | None:
    """The weight w of guidance by least squares; it is 1 - w where the two branches are given in each other's place.

    A step moves the latents along the guided prediction e_u + w (e_c - e_u), and samplers may scale the latents too. The signs
    and units that pipelines and samplers apply cancel; so does a renormalisation of the whole prediction.

    Args:
        before: latents of the first step, (batch, ...).
        after: latents of the second step.
        unconditional: e_u of the first step.
        conditional: e_c of the first step.

    Returns:
        The weight; None where the latents have another shape than the predictions, or did not move.
    """
    channels = conditional.shape[1]  # conditions that are concatenated to the latents come after them
    before, after = before[:, :channels], after[:, :channels]
    if before.shape != conditional.shape:
        return None
    basis = torch.stack([tensor.flatten().double() for tensor in (unconditional, conditional - unconditional, before)])
    moved = (after.double() - before.double()).flatten()
    gram, target = (basis @ basis.T).cpu(), (basis @ moved).cpu()
    along, difference, _ = torch.linalg.lstsq(gram, target[:, None], driver="gelsd").solution.flatten().tolist()
    return difference / along if along else None


def sampled_channels(prediction: Tensor, latents: Tensor, scheduler: Any) -> int:
    """The number of channels of a prediction that the sampler uses; the others are a learned variance.

    Networks with a learned variance (Nichol and Dhariwal, arXiv 2102.09672), as PixArt's, predict twice as many channels as their
    latents have. Most schedulers do not use the second half, and pipelines drop it after guidance.

    Args:
        prediction: output of the denoiser, (rows, channels, height, width).
        latents: input of the denoiser, (rows, channels, height, width).
        scheduler: Diffusers scheduler.
    """
    channels = latents.shape[1]
    used = scheduler.config.get("variance_type") in ("learned", "learned_range")
    return channels if prediction.shape[1] == 2 * channels and not used else prediction.shape[1]
