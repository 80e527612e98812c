"""Classifier-free guidance in stock pipelines: where its scale is known, and the channels of a prediction that it applies to."""

import inspect
from typing import Any

from torch import Tensor


def reports_guidance(pipeline: type) -> bool:
    """Whether a pipeline class exposes in a run if guidance is on and its scale; PixArt's pipelines do not."""
    return all(hasattr(pipeline, name) for name in ("do_classifier_free_guidance", "guidance_scale"))


def has_guidance(pipeline: type) -> bool:
    """Whether a pipeline class has classifier-free guidance at all."""
    encode: Any = getattr(pipeline, "encode_prompt", None)
    option = encode is not None and "do_classifier_free_guidance" in inspect.signature(encode).parameters
    return hasattr(pipeline, "do_classifier_free_guidance") or option


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
