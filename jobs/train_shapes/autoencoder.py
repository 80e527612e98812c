"""Stage 1: the autoencoder of the bundled models."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from jobs.train_shapes.build import build_autoencoder
from jobs.train_shapes.fit import FitConfig, StepRandom, fit
from jobs.train_shapes.pictures import PICTURE_SIZE, draw, random_scene

CROP = 32  # most of a picture is flat: crops around the things train four times as fast
KL_WEIGHT = 3e-4


def to_tensor(pictures: np.ndarray) -> Tensor:
    """Pictures (batch, height, width, 3) uint8 to (batch, 3, height, width) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def training_batch(batch: int, size: int, random: StepRandom) -> Tensor:
    """Random crops of random training pictures: (batch, 3, size, size)."""
    pictures = []
    for _ in range(batch):
        picture = draw(random_scene(random.numpy, two_share=0.5), random.numpy)
        y, x = random.numpy.integers(0, PICTURE_SIZE - size + 1, 2)
        pictures.append(picture[y : y + size, x : x + size])
    return to_tensor(np.stack(pictures))


def train_autoencoder(work: Path, seed: int, steps: int, device: str = "cpu") -> AutoencoderKL:
    """Trains on crops, the last fifth of the steps on whole pictures; latents come out with mean 0 and variance 1."""
    torch.manual_seed(seed)
    model = build_autoencoder().to(device, memory_format=torch.channels_last)

    def loss_of(step: int, random: StepRandom) -> Tensor:
        whole = step >= 0.8 * steps
        pictures = training_batch(8 if whole else 32, PICTURE_SIZE if whole else CROP, random).to(device)
        posterior = model.encode(pictures).latent_dist
        error = model.decode(posterior.sample(random.torch)).sample - pictures
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return error.abs().mean() + error.square().mean() + KL_WEIGHT * kl

    fit("autoencoder", model, loss_of, FitConfig(steps, 2e-3, ema_decay=0.995), work, seed)
    normalise_latents(model, training_batch(256, PICTURE_SIZE, StepRandom(seed, steps)).to(device))
    return model.eval().requires_grad_(False)


@torch.no_grad()
def normalise_latents(model: AutoencoderKL, pictures: Tensor) -> None:
    """Folds each channel's mean and scale into the two 1x1 convolutions at the latents, on both sides."""
    means = torch.cat([model.encode(part).latent_dist.mean for part in pictures.split(32)])
    shift, scale = means.mean((0, 2, 3)), means.std((0, 2, 3))
    out, back = model.quant_conv, model.post_quant_conv
    channels = len(shift)
    back.bias += back.weight[:, :, 0, 0] @ shift
    back.weight *= scale[None, :, None, None]
    out.weight[:channels] /= scale[:, None, None, None]
    out.bias[:channels] = (out.bias[:channels] - shift) / scale
    out.bias[channels:] -= 2 * scale.log()
