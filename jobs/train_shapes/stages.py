"""The stages of training: autoencoder, text encoders, denoiser, and for FLUX.1 the distillation of its guidance.

A denoiser is slow to learn what its text encoders do not distinguish. The text encoders are therefore trained by themselves for a
minute, to classify from their outputs the colour, shape, size and position of each figure of a caption; the denoiser follows such
embeddings at once.
"""

import copy
import hashlib
import logging
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn

from jobs.train_shapes.architectures import (
    LATENT_SIZE,
    TEXT_WIDTH,
    TEXT_WINDOW,
    Denoiser,
    build_autoencoder,
    build_denoiser,
    build_scheduler,
    build_text_encoders,
    build_tokenizers,
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
FLUX_BATCH_SIZE = 16  # smaller and twice as many steps: more progress from the same work
FLUX_MATRICES = r"blocks\.\d+\.(attn|ff|ff_context|proj_mlp|proj_out)\."  # all but the modulation
SHORTEST_WINDOW, LONGEST_WINDOW = 20, 512  # tokens of T5: the longest caption's, and FluxPipeline's default
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


def load_autoencoder(directory: Path, device: str = "cpu") -> AutoencoderKL:
    """A trained autoencoder from its directory in Diffusers format, in single precision."""
    model = build_autoencoder()
    model.load_state_dict(AutoencoderKL.from_pretrained(directory).state_dict())
    return model.to(device).eval().requires_grad_(False)


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


def _digest(model: nn.Module) -> str:
    """SHA-256 of a model's weights."""
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()[:8]


def attribute_labels(scene: Scene) -> list[int]:
    """The value of each attribute of a scene, as an index into its options."""
    values = [scene.background]
    for index in range(2):
        figure = scene.figures[index] if index < len(scene.figures) else None
        values += [figure.size, figure.colour, figure.shape, figure.position] if figure else [NOTHING] * 4
    return [options.index(value) for options, value in zip(ATTRIBUTES, values, strict=True)]


class TextClassifier(nn.Module):
    """Two text encoders, with a linear classifier on each of the outputs that condition a denoiser."""

    outputs: int  # that are classified

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(build_text_encoders(kind))
        self.tokenizers = build_tokenizers(kind)
        self.heads = nn.ModuleList(nn.Linear(TEXT_WIDTH, sum(map(len, ATTRIBUTES))) for _ in range(self.outputs))

    def token_ids(self, captions: list[str], encoder: int, window: int = TEXT_WINDOW) -> tuple[Tensor, Tensor]:
        """Padded token ids (batch, window) of one encoder and the position (batch) of each end token."""
        tokenizer = self.tokenizers[encoder]
        ids = tokenizer(captions, padding="max_length", max_length=window, truncation=True, return_tensors="pt").input_ids
        ids = ids.to(self.heads[0].weight.device)
        return ids, (ids == tokenizer.eos_token_id).int().argmax(-1)

    def classify(self, outputs: list[Tensor]) -> Tensor:
        """Logits (outputs, batch, options) from each output (batch, 64)."""
        return torch.stack([head(x) for head, x in zip(self.heads, outputs, strict=True)])


class ClipTextClassifier(TextClassifier):
    """SDXL's and SD3's text encoders: two CLIP models, both of which give token and pooled embeddings."""

    outputs = 4

    def forward(self, captions: list[str], window: int = TEXT_WINDOW) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings (batch, window, 128), pooled embeddings (batch, 128) and logits (4, batch, options)."""
        ids, end = self.token_ids(captions, 0, window)
        outputs = [encoder(ids, output_hidden_states=True) for encoder in self.encoders]
        hidden = [output.hidden_states[-2] for output in outputs]
        pooled = [o.text_embeds if hasattr(o, "text_embeds") else o.pooler_output for o in outputs]
        read = [h[torch.arange(len(h), device=h.device), end] for h in hidden] + pooled
        return torch.cat(hidden, -1), torch.cat(pooled, -1), self.classify(read)


class FluxTextClassifier(TextClassifier):
    """FLUX.1's text encoders: T5 gives the token embeddings, CLIP the pooled one."""

    outputs = 2

    def forward(self, captions: list[str], window: int = TEXT_WINDOW) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings (batch, window, 64), pooled embeddings (batch, 64) and logits (2, batch, options)."""
        pooled = self.encoders[0](self.token_ids(captions, 0)[0]).pooler_output
        ids, end = self.token_ids(captions, 1, window)
        hidden = self.encoders[1](ids).last_hidden_state
        return hidden, pooled, self.classify([hidden[torch.arange(len(hidden), device=hidden.device), end], pooled])


def train_text_encoders(kind: str, work: Path, seed: int, steps: int, device: str = "cpu") -> TextClassifier:
    """Trains both text encoders of a kind to classify the attributes of a caption."""
    torch.manual_seed(seed)
    classifier = (FluxTextClassifier if kind == "flux" else ClipTextClassifier)(kind).to(device)

    def loss_of(step: int, random: StepRandom) -> Tensor:
        window = random_window(step, random, every=8) if kind == "flux" else TEXT_WINDOW
        scenes = [random_scene(random.numpy, two_share=0.5) for _ in range(64 if window == TEXT_WINDOW else 8)]
        labels = torch.tensor([attribute_labels(scene) for scene in scenes], device=device)
        logits = classifier([scene.caption for scene in scenes], window)[2]
        losses = [
            nn.functional.cross_entropy(part.flatten(0, 1), labels[:, i].repeat(len(logits)))
            for i, part in enumerate(logits.split([len(options) for options in ATTRIBUTES], -1))
        ]
        return torch.stack(losses).mean()

    train(f"text-{kind}", classifier, loss_of, LoopConfig(steps, 2e-3, ema_decay=0.99), work, seed)
    return classifier.eval().requires_grad_(False)


def random_window(step: int, random: StepRandom, every: int) -> int:
    """Number of T5's tokens at a step: 24, and at each ``every``-th step a random number up to FluxPipeline's default of 512.

    Nothing masks the padding in FluxPipeline: encoder and denoiser learn to work with any number of padding tokens.
    """
    return TEXT_WINDOW if step % every else int(random.numpy.integers(SHORTEST_WINDOW, LONGEST_WINDOW + 1))


class LatentSet:
    """Captioned latents, encoded once: ``latents`` (images, 4, 16, 16) and the embeddings of each caption."""

    @torch.no_grad()
    def __init__(self, autoencoder: AutoencoderKL, classifier: TextClassifier, work: Path, seed: int, images: int) -> None:
        rng = np.random.default_rng((seed, images))
        scenes = [random_scene(rng) for _ in range(images)]
        saved = work / f"latents-{seed}-{images}-{_digest(autoencoder)}.pt"
        if not saved.exists():
            parts = []
            for start in range(0, images, 100):
                batch = np.stack([render(scene, rng) for scene in scenes[start : start + 100]])
                parts.append(autoencoder.encode(to_tensor(batch).to(autoencoder.device)).latent_dist.mode().half().cpu())
            torch.save(torch.cat(parts), saved.with_suffix(".tmp"))
            saved.with_suffix(".tmp").replace(saved)
        self.latents = torch.load(saved, weights_only=True)
        self.classifier, self.captions = classifier, ["", *(scene.caption for scene in scenes)]
        texts = [classifier(self.captions[i : i + 200])[:2] for i in range(0, len(self.captions), 200)]
        self.embeddings, self.pooled = (torch.cat([t[i] for t in texts]).half().cpu() for i in range(2))
        log.info("%d captioned latents", images)

    @torch.no_grad()
    def batch(self, random: StepRandom, rows: int = BATCH_SIZE, window: int = TEXT_WINDOW) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (rows, 4, 16, 16), embeddings (rows, window, width), pooled (rows, width); some of the empty prompt."""
        which = torch.from_numpy(random.numpy.integers(0, len(self.latents), rows))
        text = (which + 1) * torch.from_numpy(random.numpy.random(rows) >= PROMPT_DROPOUT)
        if window == TEXT_WINDOW:
            embeddings = self.embeddings[text].float()
        else:
            embeddings = self.classifier([self.captions[i] for i in text.tolist()], window)[0].cpu()
        return self.latents[which].float(), embeddings, self.pooled[text].float()

    @torch.no_grad()
    def empty_prompt(self, rows: int, window: int = TEXT_WINDOW) -> tuple[Tensor, Tensor]:
        """Embeddings (rows, window, width) and pooled embeddings (rows, width) of the empty prompt."""
        embeddings = self.embeddings[:1].float() if window == TEXT_WINDOW else self.classifier([""], window)[0].cpu()
        return embeddings.expand(rows, -1, -1), self.pooled[:1].float().expand(rows, -1)


def train_denoiser(kind: str, data: LatentSet, work: Path, seed: int, steps: int, device: str = "cpu") -> Denoiser:
    """Trains a denoiser of a kind on v-prediction with zero terminal SNR (``xl``) or flow matching (``sd3``, ``flux``)."""
    torch.manual_seed(seed)
    model = build_denoiser(kind).to(device, memory_format=torch.channels_last)
    loss = {"xl": unet_loss, "sd3": transformer_loss, "flux": flux_loss}[kind](model, data)
    config = LoopConfig(steps, 1e-3 if kind == "xl" else 1.5e-3, muon=FLUX_MATRICES if kind == "flux" else None)
    train(f"denoiser-{kind}", model, loss, config, work, seed)
    return model.eval().requires_grad_(False)


def distill_guidance(
    teacher: FluxTransformer2DModel, data: LatentSet, work: Path, seed: int, steps: int, device: str = "cpu"
) -> FluxTransformer2DModel:
    """Distills classifier-free guidance into the guidance embedding (arXiv 2210.03142); at guidance 1 the teacher remains."""
    torch.manual_seed(seed)
    model = copy.deepcopy(teacher).requires_grad_(True).train()
    config = LoopConfig(steps, 7e-4, muon=FLUX_MATRICES)
    train("distilled-flux", model, distillation_loss(model, teacher.to(device), data), config, work, seed)
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
        time, noise, noisy = add_noise(latents, random)
        predicted = model(*(tensor.to(model.device) for tensor in (noisy, embeddings, pooled, time * 1000))).sample
        return (predicted.cpu() - (noise - latents)).square().mean()

    return loss_of


def add_noise(latents: Tensor, random: StepRandom) -> tuple[Tensor, Tensor, Tensor]:
    """Logit-normal times (rows), noise, and latents with noise at these times."""
    time = torch.randn(len(latents), generator=random.torch).mul(1.2).sigmoid()
    noise = torch.randn(latents.shape, generator=random.torch)
    return time, noise, torch.lerp(latents, noise, time.reshape(-1, *[1] * (latents.ndim - 1)))


def pack(latents: Tensor) -> Tensor:
    """Latents (rows, 4, 16, 16) as FluxPipeline's tokens of 2 x 2 latents: (rows, 64, 16)."""
    return nn.functional.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def call_flux(model: FluxTransformer2DModel, *inputs: Tensor) -> Tensor:
    """Velocity (rows, 64, 16) from noisy tokens, embeddings, pooled embeddings, times in [0, 1] and guidance."""
    noisy, embeddings, pooled, time, guidance = (tensor.to(model.device) for tensor in inputs)
    side = torch.arange(LATENT_SIZE // 2, device=model.device, dtype=torch.float32)
    image_ids = torch.cartesian_prod(side.new_zeros(1), side, side)
    text_ids = side.new_zeros(embeddings.shape[1], 3)
    return model(noisy, embeddings, pooled, time, image_ids, text_ids, guidance).sample.cpu()


def flux_batch(data: LatentSet, step: int, random: StepRandom) -> tuple[Tensor, Tensor, Tensor]:
    """Packed latents, embeddings and pooled embeddings of a step; fewer rows with a longer text, for the same work."""
    window = random_window(step, random, every=25)
    rows = FLUX_BATCH_SIZE * (64 + TEXT_WINDOW) // (64 + max(window, TEXT_WINDOW))
    latents, embeddings, pooled = data.batch(random, rows, window)
    return pack(latents), embeddings, pooled


def flux_loss(model: FluxTransformer2DModel, data: LatentSet) -> LossFunction:
    """The flow-matching loss at guidance 1."""

    def loss_of(step: int, random: StepRandom) -> Tensor:
        latents, embeddings, pooled = flux_batch(data, step, random)
        time, noise, noisy = add_noise(latents, random)
        predicted = call_flux(model, noisy, embeddings, pooled, time, torch.ones_like(time))
        return (predicted - (noise - latents)).square().mean()

    return loss_of


def distillation_loss(model: FluxTransformer2DModel, teacher: FluxTransformer2DModel, data: LatentSet) -> LossFunction:
    """The distance to the teacher's guided prediction at guidance 1 (a third of the rows) or random guidance up to 8.

    Errors are divided by their guidance, with which targets grow: those at 1, which guidance by two calls rests on, would else
    hardly count.
    """

    def loss_of(step: int, random: StepRandom) -> Tensor:
        latents, embeddings, pooled = flux_batch(data, step, random)
        time, _, noisy = add_noise(latents, random)
        rows = len(latents)
        guidance = 1 + 7 * torch.rand(rows, generator=random.torch)
        guidance[torch.rand(rows, generator=random.torch) < 1 / 3] = 1.0
        with torch.no_grad():
            empty = data.empty_prompt(rows, embeddings.shape[1])
            both = [torch.cat(pair) for pair in zip((noisy, embeddings, pooled, time), (noisy, *empty, time), strict=True)]
            plain, unguided = call_flux(teacher, *both, torch.ones(2 * rows)).chunk(2)
            target = unguided + guidance[:, None, None] * (plain - unguided)
        error = call_flux(model, noisy, embeddings, pooled, time, guidance) - target
        return (error / guidance[:, None, None]).square().mean()

    return loss_of
