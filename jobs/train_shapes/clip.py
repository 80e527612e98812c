"""A small CLIP on captioned shapes: an extractor and a scorer for tests and for the benchmark of the bundled models.

It sees rendered images alone. Blur, noise and shifts of colour in training stand in for what an autoencoder and a denoiser do.
"""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from jobs.train_shapes.architectures import TEXT_WIDTH, TEXT_WINDOW, build_tokenizer
from jobs.train_shapes.scenes import COLOURS, IMAGE_SIZE, POSITIONS, SHAPES, SIZES, Scene, random_scene, render
from jobs.train_shapes.training_loop import LoopConfig, LossFunction, StepRandom, train

log = logging.getLogger(__name__)

BATCH_SIZE = 96
WIDTH = 96
PATCH_SIZE = 8
LEARNING_RATE = 1.5e-3
BUNDLED = Path(__file__).parent / "shapes-clip"


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """An untrained CLIP for images of 64 x 64 pixels: patches of 8 x 8 pixels, embeddings of 64 numbers."""
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=TEXT_WINDOW,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
    )
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=TEXT_WIDTH)
    return CLIPModel(config)


def altered(scene: Scene, random: np.random.Generator) -> Scene:
    """A scene that differs in one attribute: of a figure the shape, colour, size or position, or the background."""
    figures, index = list(scene.figures), int(random.integers(len(scene.figures)))
    figure, two = figures[index], len(figures) > 1
    names = ["shape", "colour", "background", *([] if two else ["size", "position"])]
    name = str(random.choice(names))
    colours = [c for c in COLOURS if c not in {scene.background, *(f.colour for f in figures)}]
    if name == "background":
        return Scene(scene.figures, str(random.choice(colours)))
    options = {"shape": SHAPES, "colour": colours, "size": tuple(SIZES), "position": tuple(POSITIONS)}[name]
    figures[index] = replace(figure, **{name: str(random.choice([o for o in options if o != getattr(figure, name)]))})
    return Scene(tuple(figures), scene.background)


def disturbed(image: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """An image with random blur, noise and shift of colour."""
    pixels = image.astype(np.float32)
    blur = random.uniform(0, 0.8)
    for axis in (0, 1):
        neighbours = np.roll(pixels, 1, axis) + np.roll(pixels, -1, axis)
        pixels = (1 - blur / 2) * pixels + blur / 4 * neighbours
    noisy = pixels + random.normal(0, 6, 3) + random.normal(0, random.uniform(0, 8), pixels.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def contrastive_loss(model: CLIPModel, tokenizer: CLIPTokenizer) -> LossFunction:
    """CLIP's loss (arXiv 2103.00020), with a second caption for each image that is wrong in one attribute."""

    def loss_of(step: int, random: StepRandom) -> Tensor:
        scenes = list({s.caption: s for s in (random_scene(random.numpy, two_share=0.3) for _ in range(BATCH_SIZE))}.values())
        images = np.stack([disturbed(render(scene, random.numpy), random.numpy) for scene in scenes])
        captions = [scene.caption for scene in scenes]
        wrong = [altered(scene, random.numpy).caption for scene in scenes]
        tokens = tokenizer(captions + wrong, padding="max_length", max_length=TEXT_WINDOW, truncation=True, return_tensors="pt")
        device = model.device
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1).to(device)
        output = model(
            input_ids=tokens.input_ids.to(device), attention_mask=tokens.attention_mask.to(device), pixel_values=pixels
        )
        logits = output.logits_per_image
        known = {caption: index for index, caption in enumerate(captions)}
        for row, caption in enumerate(wrong):  # an altered scene may be another one of the batch: right there, so left out here
            if caption in known:
                logits[:, len(scenes) + row] = -1e4
        right = torch.arange(len(scenes), device=device)
        return functional.cross_entropy(logits, right) + functional.cross_entropy(logits[:, : len(scenes)].T, right)

    return loss_of


def train_clip(work: Path, seed: int, steps: int, device: str = "cpu") -> tuple[CLIPModel, CLIPTokenizer]:
    """Trains the model, and its tokenizer, which needs no training."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = build_clip(tokenizer).to(device)
    train("clip", model, contrastive_loss(model, tokenizer), LoopConfig(steps, LEARNING_RATE, ema_decay=0.99), work, seed)
    return model.eval().requires_grad_(False), tokenizer


def save_clip(model: CLIPModel, tokenizer: CLIPTokenizer, directory: Path) -> None:
    """Writes a model in Transformers' directory format, its image processor and tokenizer included."""
    size = {"size": {"shortest_edge": IMAGE_SIZE}, "crop_size": IMAGE_SIZE}
    CLIPImageProcessorPil(**size, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    model.save_pretrained(directory, safe_serialization=True)


@torch.inference_mode()
def caption_scores(
    model: CLIPModel, tokenizer: CLIPTokenizer, images: NDArray[np.uint8], captions: list[str]
) -> NDArray[np.float32]:
    """Cosine similarities of images (rows, 64, 64, 3) and captions: (rows, captions)."""
    tokens = tokenizer(captions, padding="max_length", max_length=TEXT_WINDOW, truncation=True, return_tensors="pt")
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    output = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=pixels)
    return np.asarray((output.image_embeds @ output.text_embeds.T).numpy())


def log_accuracy(model: CLIPModel, tokenizer: CLIPTokenizer, rows: int = 256, seed: int = 7) -> None:
    """Logs on held-out captions how often the right one scores highest: against the next row's, and against an altered one."""
    random = np.random.default_rng(seed)
    scenes = [random_scene(random, held_out=True) for _ in range(rows)]
    images = np.stack([render(scene, random) for scene in scenes])
    scores = caption_scores(model, tokenizer, images, [s.caption for s in scenes] + [altered(s, random).caption for s in scenes])
    right, shuffled = scores.diagonal(), np.roll(scores[:, :rows], -1, axis=1).diagonal()
    wrong = scores[:, rows:].diagonal()
    log.info("on %d held-out captions: right above the next row's in %.3f", rows, (right > shuffled).mean())
    log.info("right above one that is wrong in one attribute in %.3f", (right > wrong).mean())
