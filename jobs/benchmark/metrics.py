"""How near pictures are to others."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

PSNR_CAP = 100.0  # dB; identical pictures have an infinite one


def psnr(pictures: Tensor, references: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB: (batch,), infinite where both are identical.

    Args:
        pictures: (batch, ...) uint8, or floating point in [0, 1].
        references: Of the same shape and type.
    """
    error = (_unit(pictures) - _unit(references)).square().flatten(1).mean(1)
    return -10 * error.log10()


def ssim(pictures: Tensor, references: Tensor) -> Tensor:
    """Structural similarity of each picture, with the usual 11 x 11 Gaussian window of sigma 1.5: (batch,).

    Args:
        pictures: (batch, channels, height, width) uint8, or floating point in [0, 1].
        references: Of the same shape and type.
    """
    value = structural_similarity_index_measure(_unit(pictures), _unit(references), data_range=1.0, reduction="none")
    assert isinstance(value, Tensor)
    return value.reshape(len(pictures))


@dataclass(frozen=True)
class Fidelity:
    """Nearness of a set of pictures to their references: median and worst, PSNR in dB, at most 100."""

    psnr_median: float
    psnr_worst: float
    ssim_median: float
    ssim_worst: float


def summarise(psnrs: list[float], ssims: list[float]) -> Fidelity:
    """The medians and the worst of the values of single pictures."""
    capped = torch.tensor(psnrs, dtype=torch.float64).clamp(max=PSNR_CAP)
    similar = torch.tensor(ssims, dtype=torch.float64)
    return Fidelity(*(round(v.item(), 4) for t in (capped, similar) for v in (t.quantile(0.5), t.min())))


def _unit(pictures: Tensor) -> Tensor:
    return pictures.double() / 255 if pictures.dtype == torch.uint8 else pictures.double()
