"""The three stages of training: autoencoder, text encoders, denoiser.

A denoiser is slow to learn what its text encoders do not distinguish. The text encoders are therefore trained by themselves for a
minute, to classify from their outputs the colour, shape, size and position of each figure of a caption; the denoiser follows such
embeddings at once.
"""

import logging
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from jobs.train_shapes.architectures import (
    TEXT_WIDTH,
    build_autoencoder,
    build_denoiser,
    build_scheduler,
    build_text_encoders,
    build_tokenizer,
)
from jobs.train_shapes.scenes import COLOURS, IMAGE_SIZE, POSITIONS, SHAPES, SIZES, Scene, random_scene, render
from jobs.train_shapes.training_loop import LoopConfig, LossFunction, StepRandom, train

log = logging.getLogger(__name__)

CROP = 32  # pixels; most of an image is flat: crops around the figures train four times as fast
KL_WEIGHT = 3e-4
NOTHING = "nothing"
ATTRIBUTES: tuple[tuple[str, ...], ...] = (
    tuple(COLOURS),  # the background
    *((*options, NOTHING) for _ in range(2) for options in (SIZES, COLOURS, SHAPES, POSITIONS)),
)
PROMPT_DROPOUT = 0.12
BATCH_SIZE = 32
TIME_IDS = torch.tensor([IMAGE_SIZE, IMAGE_SIZE, 0, 0, IMAGE_SIZE, IMAGE_SIZE], dtype=torch.float32)


def to_tensor(images: np.ndarray) -> Tensor:
    """Images (batch, height, width, 3) uint8 to (batch, 3, height, width) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def training_batch(batch: int, size: int, random: StepRandom) -> Tensor:
    """Random crops of random training images: (batch, 3, size, size)."""
    images = []
    for _ in range(batch):
        image = render(random_scene(random.numpy, two_share=0.5), random.numpy)
        y, x = random.numpy.integers(0, IMAGE_SIZE - size + 1, 2)
        images.append(image[y : y + size, x : x + size])
    return to_tensor(np.stack(images))


def train_autoencoder(work: Path, seed: int, steps: int, device: str = "cpu") -> AutoencoderKL:
    """Trains on crops, in the last fifth of the steps on whole images; its latents have mean 0 and variance 1."""
    torch.manual_seed(seed)
    model = build_autoencoder().to(device, memory_format=torch.channels_last)

    def loss_of(step: int, random: StepRandom) -> Tensor:
        whole = step >= 0.8 * steps
        images = training_batch(8 if whole else 32, IMAGE_SIZE if whole else CROP, random).to(device)
        posterior = model.encode(images).latent_dist
        error = model.decode(posterior.sample(random.torch)).sample - images
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return error.abs().mean() + error.square().mean() + KL_WEIGHT * kl

    train("autoencoder", model, loss_of, LoopConfig(steps, 2e-3, ema_decay=0.995), work, seed)
    normalise_latents(model, training_batch(256, IMAGE_SIZE, StepRandom(seed, steps)).to(device))
    return model.eval().requires_grad_(False)


@torch.no_grad()
def normalise_latents(model: AutoencoderKL, images: Tensor) -> None:
    """Folds each channel's mean and scale into the two 1x1 convolutions at the latents, on both sides."""
    means = torch.cat([model.encode(part).latent_dist.mean for part in images.split(32)])
    shift, scale = means.mean((0, 2, 3)), means.std((0, 2, 3))
    out, back = model.quant_conv, model.post_quant_conv
    channels = len(shift)
    back.bias += back.weight[:, :, 0, 0] @ shift
    back.weight *= scale[None, :, None, None]
    out.weight[:channels] /= scale[:, None, None, None]
    out.bias[:channels] = (out.bias[:channels] - shift) / scale
    out.bias[channels:] -= 2 * scale.log()


def attribute_labels(scene: Scene) -> list[int]:
    """The value of each attribute of a scene, as an index into its options."""
    values = [scene.background]
    for index in range(2):
        figure = scene.figures[index] if index < len(scene.figures) else None
        values += [figure.size, figure.colour, figure.shape, figure.position] if figure else [NOTHING] * 4
    return [options.index(value) for options, value in zip(ATTRIBUTES, values, strict=True)]


class TextClassifier(nn.Module):
    """Two text encoders, with a linear classifier on each of the outputs that condition a denoiser."""

    def __init__(self, encoders: tuple[CLIPTextModel, CLIPTextModel], tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.tokenizer = tokenizer
        self.heads = nn.ModuleList(nn.Linear(TEXT_WIDTH, sum(map(len, ATTRIBUTES))) for _ in range(4))

    def forward(self, captions: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings (batch, 24, 128), pooled embeddings (batch, 128) and logits (4, batch, options)."""
        ids = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        ids = ids.to(self.heads[0].weight.device)
        end = (ids == self.tokenizer.eos_token_id).int().argmax(-1)
        outputs = [encoder(ids, output_hidden_states=True) for encoder in self.encoders]
        hidden = [output.hidden_states[-2] for output in outputs]
        pooled = [o.text_embeds if hasattr(o, "text_embeds") else o.pooler_output for o in outputs]
        read = [h[torch.arange(len(h), device=h.device), end] for h in hidden] + pooled
        logits = torch.stack([head(x) for head, x in zip(self.heads, read, strict=True)])
        return torch.cat(hidden, -1), torch.cat(pooled, -1), logits


def train_text_encoders(kind: str, work: Path, seed: int, steps: int, device: str = "cpu") -> TextClassifier:
    """Trains both text encoders of a kind to classify the attributes of a caption."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    classifier = TextClassifier(build_text_encoders(kind, tokenizer), tokenizer).to(device)

    def loss_of(step: int, random: StepRandom) -> Tensor:
        scenes = [random_scene(random.numpy, two_share=0.5) for _ in range(64)]
        labels = torch.tensor([attribute_labels(scene) for scene in scenes], device=device)
        parts = classifier([scene.caption for scene in scenes])[2].split([len(q) for q in ATTRIBUTES], -1)
        losses = [nn.functional.cross_entropy(p.flatten(0, 1), labels[:, i].repeat(4)) for i, p in enumerate(parts)]
        return torch.stack(losses).mean()

    train(f"text-{kind}", classifier, loss_of, LoopConfig(steps, 2e-3, ema_decay=0.99), work, seed)
    return classifier.eval().requires_grad_(False)


class LatentSet:
    """Captioned latents, encoded once: ``latents`` (images, 4, 16, 16) and the embeddings of each caption."""

    @torch.no_grad()
    def __init__(self, autoencoder: AutoencoderKL, classifier: TextClassifier, work: Path, seed: int, images: int) -> None:
        rng = np.random.default_rng((seed, images))
        scenes = [random_scene(rng) for _ in range(images)]
        saved = work / f"latents-{seed}-{images}.pt"
        if not saved.exists():
            parts = []
            for start in range(0, images, 100):
                batch = np.stack([render(scene, rng) for scene in scenes[start : start + 100]])
                parts.append(autoencoder.encode(to_tensor(batch).to(autoencoder.device)).latent_dist.mode().half().cpu())
            torch.save(torch.cat(parts), saved.with_suffix(".tmp"))
            saved.with_suffix(".tmp").replace(saved)
        self.latents = torch.load(saved, weights_only=True)
        captions = ["", *(scene.caption for scene in scenes)]
        texts = [classifier(captions[i : i + 200])[:2] for i in range(0, len(captions), 200)]
        self.embeddings, self.pooled = (torch.cat([t[i] for t in texts]).half().cpu() for i in range(2))
        log.info("%d captioned latents", images)

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
    config = LoopConfig(steps, 1e-3 if kind == "xl" else 1.5e-3)
    train(f"denoiser-{kind}", model, loss, config, work, seed)
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

    The pipeline appends zeros where the T5 embeddings are missing, 256 tokens by default; the number varies here so that the
    model works with any.
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
