"""Classifier-free guidance in stock pipelines: who tells its scale, and which of the denoiser's channels it is for."""

import inspect
from typing import Any

from torch import Tensor


def tells_guidance(pipeline: type) -> bool:
    """Whether a pipeline class says in a run if guidance is on and what its scale is; PixArt's keep it to themselves."""
    return all(hasattr(pipeline, name) for name in ("do_classifier_free_guidance", "guidance_scale"))


def has_guidance(pipeline: type) -> bool:
    """Whether a pipeline class has classifier-free guidance at all."""
    encode: Any = getattr(pipeline, "encode_prompt", None)
    takes = encode is not None and "do_classifier_free_guidance" in inspect.signature(encode).parameters
    return hasattr(pipeline, "do_classifier_free_guidance") or takes


def sampled_channels(prediction: Tensor, latents: Tensor, scheduler: Any) -> int:
    """How many channels of a prediction (rows, channels, height, width) the sampler gets; the others are a learned variance.

    Networks trained with a learned variance (Nichol and Dhariwal, arXiv 2102.09672), as PixArt's, predict as many channels
    again as their latents have. Most schedulers have no use for them, and pipelines drop them after guidance.
    """
    channels = latents.shape[1]
    used = scheduler.config.get("variance_type") in ("learned", "learned_range")
    return channels if prediction.shape[1] == 2 * channels and not used else prediction.shape[1]
