"""Stage 3: the denoisers, on the latents of the autoencoder and the embeddings of the text encoders."""

import logging
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor

from jobs.train_shapes.autoencoder import to_tensor
from jobs.train_shapes.build import PICTURE_SIZE, TEXT_WIDTH, build_denoiser, build_scheduler
from jobs.train_shapes.fit import FitConfig, LossFunction, StepRandom, fit
from jobs.train_shapes.pictures import draw, random_scene
from jobs.train_shapes.text import TextExam

log = logging.getLogger(__name__)

PROMPT_DROPOUT = 0.12
BATCH_SIZE = 32
TIME_IDS = torch.tensor([PICTURE_SIZE, PICTURE_SIZE, 0, 0, PICTURE_SIZE, PICTURE_SIZE], dtype=torch.float32)


class LatentSet:
    """Captioned latents, encoded once: ``latents`` (pictures, 4, 16, 16) and what the text encoders say of each caption."""

    @torch.no_grad()
    def __init__(self, autoencoder: AutoencoderKL, exam: TextExam, work: Path, seed: int, pictures: int) -> None:
        rng = np.random.default_rng((seed, pictures))
        scenes = [random_scene(rng) for _ in range(pictures)]
        saved = work / f"latents-{seed}-{pictures}.pt"
        if not saved.exists():
            parts = []
            for start in range(0, pictures, 100):
                batch = np.stack([draw(scene, rng) for scene in scenes[start : start + 100]])
                parts.append(autoencoder.encode(to_tensor(batch).to(autoencoder.device)).latent_dist.mode().half().cpu())
            torch.save(torch.cat(parts), saved.with_suffix(".tmp"))
            saved.with_suffix(".tmp").replace(saved)
        self.latents = torch.load(saved, weights_only=True)
        captions = ["", *(scene.caption for scene in scenes)]
        texts = [exam(captions[i : i + 200])[:2] for i in range(0, len(captions), 200)]
        self.embeddings, self.pooled = (torch.cat([t[i] for t in texts]).half().cpu() for i in range(2))
        log.info("%d captioned latents", pictures)

    def batch(self, random: StepRandom) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (batch, 4, 16, 16), embeddings (batch, 24, 128), pooled (batch, 128); some of the empty prompt."""
        which = torch.from_numpy(random.numpy.integers(0, len(self.latents), BATCH_SIZE))
        text = (which + 1) * torch.from_numpy(random.numpy.random(BATCH_SIZE) >= PROMPT_DROPOUT)
        return self.latents[which].float(), self.embeddings[text].float(), self.pooled[text].float()


def train_denoiser(
    kind: str, data: LatentSet, work: Path, seed: int, steps: int, device: str = "cpu"
) -> UNet2DConditionModel | SD3Transformer2DModel:
    """Trains a denoiser of a kind on v-prediction with zero terminal SNR (``xl``) or flow matching (``sd3``)."""
    torch.manual_seed(seed)
    model = build_denoiser(kind).to(device, memory_format=torch.channels_last)
    loss = unet_loss(model, data) if kind == "xl" else transformer_loss(model, data)
    config = FitConfig(steps, 1e-3 if kind == "xl" else 1.5e-3)
    fit(f"denoiser-{kind}", model, loss, config, work, seed)
    return model.eval().requires_grad_(False)


def unet_loss(model: UNet2DConditionModel, data: LatentSet) -> LossFunction:
    """The v-prediction loss at uniform timesteps. SDXL zeroes an absent negative prompt, so some are zeros here."""
    cumulative = build_scheduler("xl").alphas_cumprod

    def loss_of(step: int, random: StepRandom) -> Tensor:
        latents, embeddings, pooled = data.batch(random)
        zeroed = torch.from_numpy(random.numpy.random(BATCH_SIZE) < PROMPT_DROPOUT / 2)
        embeddings[zeroed], pooled[zeroed] = 0.0, 0.0
        timesteps = torch.randint(0, len(cumulative), (BATCH_SIZE,), generator=random.torch)
        signal, noise_level = (c[timesteps, None, None, None].sqrt() for c in (cumulative, 1 - cumulative))
        noise = torch.randn(latents.shape, generator=random.torch)
        noisy = signal * latents + noise_level * noise
        inputs = (noisy, timesteps, embeddings, pooled[:, TEXT_WIDTH:], TIME_IDS.expand(BATCH_SIZE, 6))
        noisy, timesteps, embeddings, text, ids = (tensor.to(model.device) for tensor in inputs)
        predicted = model(noisy, timesteps, embeddings, added_cond_kwargs={"text_embeds": text, "time_ids": ids}).sample
        return (predicted.cpu() - (signal * noise - noise_level * latents)).square().mean()

    return loss_of


def transformer_loss(model: SD3Transformer2DModel, data: LatentSet) -> LossFunction:
    """The flow-matching loss at logit-normal times (arXiv 2403.03206, section 3.1).

    The pipeline appends zeros where the T5 embeddings are missing, 256 tokens unless told otherwise; the number varies here so
    that the model works with any.
    """

    def loss_of(step: int, random: StepRandom) -> Tensor:
        latents, embeddings, pooled = data.batch(random)
        padding = {0: 256, 1: 64}.get(step % 25, int(random.numpy.integers(0, 9)))
        embeddings = torch.cat([embeddings, embeddings.new_zeros(BATCH_SIZE, padding, embeddings.shape[-1])], 1)
        time = torch.randn(BATCH_SIZE, generator=random.torch).mul(1.2).sigmoid()
        noise = torch.randn(latents.shape, generator=random.torch)
        noisy = torch.lerp(latents, noise, time[:, None, None, None])
        predicted = model(*(tensor.to(model.device) for tensor in (noisy, embeddings, pooled, time * 1000))).sample
        return (predicted.cpu() - (noise - latents)).square().mean()

    return loss_of
