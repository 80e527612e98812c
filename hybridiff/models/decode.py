"""Latents to images, as the stock pipelines do it after their last step."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hybridiff.models.families import family_of


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
    undone = family_of(type(pipeline)).latents
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    latents = latents / config.scaling_factor
    if undone == "shift":
        latents = latents + (getattr(config, "shift_factor", None) or 0.0)
    elif undone == "channels" and mean is not None and std is not None:
        mean, std = (torch.tensor(v, device=latents.device, dtype=latents.dtype).view(1, -1, 1, 1) for v in (mean, std))
        latents = latents * std + mean
    decoded = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
    finite &= decoded.flatten(1).isfinite().all(1)
    return to_images(pipeline.image_processor.postprocess(decoded.float(), output_type="pt")), finite.to(torch.uint8)


def to_images(pixels: Tensor) -> Tensor:
    """Images (batch, height, width, 3) uint8 from a pipeline's output, (batch, 3, height, width) in [0, 1]."""
    return pixels.float().nan_to_num().permute(0, 2, 3, 1).mul(255).round().to(torch.uint8).contiguous()


@contextmanager
def decoding_rows(vae: Any, rows: Sequence[int]) -> Iterator[dict[int, bool]]:
    """The context of a pipeline's call whose autoencoder decodes some rows of the batch, one at a time; the others are zeros.

    Args:
        vae: autoencoder of the pipeline.
        rows: rows to decode.

    Yields:
        Whether the latents and the image of each row are finite; filled by the call.
    """
    decode, finite = vae.decode, dict[int, bool]()

    def decode_rows(latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        batch: Tensor | None = None
        output: Any = None
        for row in dict.fromkeys(rows):
            output = decode(latents[row : row + 1], *args, **kwargs)
            image = output[0]
            if batch is None:
                batch = image.new_zeros((len(latents), *image.shape[1:]))
            batch[row] = image[0]
            finite[row] = bool(latents[row].isfinite().all() and image.isfinite().all())
        assert batch is not None, "each rank decodes at least one row"
        return (batch,) if isinstance(output, tuple) else type(output)(sample=batch)

    vae.decode = decode_rows
    try:
        yield finite
    finally:
        del vae.decode
