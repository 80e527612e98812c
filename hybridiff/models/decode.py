"""Latents to images, as the stock pipelines do it after their last step."""

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def decode_latents(pipeline: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Decodes latents, (batch, channels, height / scale, width / scale), with the pipeline's autoencoder.

    Returns:
        Images, (batch, height, width, 3) uint8; and whether the latents and the image of each are finite, (batch,) uint8.
    """
    finite = latents.flatten(1).isfinite().all(1)
    vae = pipeline.vae
    config = vae.config
    if vae.dtype == torch.float16 and getattr(config, "force_upcast", False):
        vae.to(torch.float32)  # SDXL's decoder overflows in half precision
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        mean, std = (torch.tensor(v, device=latents.device, dtype=latents.dtype).view(1, -1, 1, 1) for v in (mean, std))
        latents = latents * std / config.scaling_factor + mean
    else:
        latents = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
    decoded = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
    finite &= decoded.flatten(1).isfinite().all(1)
    pixels = pipeline.image_processor.postprocess(decoded.float(), output_type="pt")
    images = pixels.nan_to_num().permute(0, 2, 3, 1).mul(255).round().to(torch.uint8).contiguous()
    return images, finite.to(torch.uint8)
