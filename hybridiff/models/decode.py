"""Latents to pictures, as the stock pipelines do it after their last step."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@torch.no_grad()
def decode_latents(pipeline: Any, latents: Tensor) -> Tensor:
    """Decodes latents (batch, channels, height/scale, width/scale) to pictures (batch, height, width, 3) uint8."""
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
    pixels = pipeline.image_processor.postprocess(decoded.float(), output_type="pt")
    return pixels.permute(0, 2, 3, 1).mul(255).round().to(torch.uint8).contiguous()


def to_arrays(pictures: Tensor) -> list[NDArray[np.uint8]]:
    """A batch of pictures as one array each: (height, width, 3) uint8."""
    return list(pictures.cpu().numpy())
