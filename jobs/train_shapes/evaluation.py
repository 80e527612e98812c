"""How well a bundled model follows captions: images are judged against their scenes by colours and templates, without a network.

Size is not judged, and position only in that a figure is searched for where its caption puts it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from math import ceil
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.train_shapes.scenes import COLOURS, IMAGE_SIZE, POSITIONS, SHAPES, SIZES, Figure, Scene, coverage, random_scene

BATCH_SIZE = 16
CORNER = 12  # pixels; no figure reaches into a corner of this size
VISIBLE = 35.0  # least distance of a figure's colour from the background's, in RGB levels; palette colours are 87 or more apart
CERTAIN = 0.5  # share of the smallest shape's area (1.6 radius**2) whose most distant pixels determine the colour
LEAST_OVERLAP = 0.5  # a template that overlaps less is no match


@dataclass(frozen=True)
class Verdict:
    """What is right in an image: the background, and each figure's colour and shape. In an empty image nothing is right."""

    background: bool
    colours: tuple[bool, ...]
    shapes: tuple[bool, ...]


@dataclass(frozen=True)
class Score:
    """Shares that are right, in [0, 1]: of figures (colour, shape) and of images (background)."""

    colour: float
    background: float
    shape: float


def judge(image: NDArray[np.uint8], scene: Scene) -> Verdict:
    """Compares an image, (64, 64, 3) uint8, with the scene of its caption."""
    pixels = np.asarray(image, dtype=np.float32)
    if pixels.shape != (IMAGE_SIZE, IMAGE_SIZE, 3):
        raise ValueError(f"image has shape {pixels.shape}; allowed: ({IMAGE_SIZE}, {IMAGE_SIZE}, 3)")
    edges = np.r_[:CORNER, IMAGE_SIZE - CORNER : IMAGE_SIZE]
    background = np.median(pixels[np.ix_(edges, edges)].reshape(-1, 3), axis=0)
    seen = [_detect(pixels, background, figure, len(scene.figures) > 1) for figure in scene.figures]
    return Verdict(
        background=_nearest_colour(background) == scene.background and any(colour is not None for colour, _ in seen),
        colours=tuple(colour == figure.colour for (colour, _), figure in zip(seen, scene.figures, strict=True)),
        shapes=tuple(shape == figure.shape for (_, shape), figure in zip(seen, scene.figures, strict=True)),
    )


def score(images: Iterable[NDArray[np.uint8]], scenes: Iterable[Scene]) -> Score:
    """Judges each image, (64, 64, 3) uint8, against the scene of the same position and averages."""
    verdicts = [judge(image, scene) for image, scene in zip(images, scenes, strict=True)]
    if not verdicts:
        raise ValueError("there are 0 images to score; allowed: 1 or more")
    return Score(
        colour=float(np.mean([right for verdict in verdicts for right in verdict.colours])),
        background=float(np.mean([verdict.background for verdict in verdicts])),
        shape=float(np.mean([right for verdict in verdicts for right in verdict.shapes])),
    )


def held_out_scenes(count: int, seed: int = 7) -> list[Scene]:
    """Scenes with held-out captions; fewer are always the first ones of more."""
    rng = np.random.default_rng(seed)
    return [random_scene(rng, held_out=True) for _ in range(count)]


def score_pipeline(pipeline: Any, scenes: list[Scene], steps: int = 50, guidance_scale: float = 5.0) -> Score:
    """Generates an image for each scene's caption, image i with seed i, and judges them."""
    images = []
    for start in range(0, len(scenes), BATCH_SIZE):
        batch = scenes[start : start + BATCH_SIZE]
        seeds = range(start, start + len(batch))
        images += pipeline(
            [scene.caption for scene in batch],
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            **({"max_sequence_length": 8} if hasattr(pipeline, "transformer") else {}),
        ).images
    return score([np.asarray(image) for image in images], scenes)


def _detect(
    pixels: NDArray[np.float32], background: NDArray[np.float32], figure: Figure, paired: bool
) -> tuple[str | None, str | None]:
    """Colour and shape found where a figure should be; None for what is not there."""
    difference = (pixels - background) * _region(figure, paired)[..., None]
    distance = np.linalg.norm(difference, axis=-1)
    # The most distant pixels lie inside the figure: edges are mixed with the background.
    count = int(CERTAIN * 1.6 * SIZES[figure.size] ** 2)
    inner = np.argpartition(distance.ravel(), -count)[-count:]
    contrast = np.median(difference.reshape(-1, 3)[inner], axis=0)
    if np.linalg.norm(contrast) < VISIBLE:
        return None, None
    mask = np.clip(difference @ contrast / (contrast @ contrast), 0, 1)
    return _nearest_colour(background + contrast), _best_shape(mask, SIZES[figure.size])


def _region(figure: Figure, paired: bool) -> NDArray[np.bool_]:
    """Where a figure is searched for, (64, 64): around its position, or in its half of the image where there are two."""
    centre = np.array(POSITIONS[figure.position])
    axes = np.stack(np.meshgrid(np.arange(IMAGE_SIZE) + 0.5, np.arange(IMAGE_SIZE) + 0.5), axis=-1)
    if paired:
        half = IMAGE_SIZE / 2
        inside = (axes < half) == (centre < half)
        return np.asarray(np.where(centre == half, True, inside).all(axis=-1))
    reach = 1.25 * SIZES[figure.size] + 6
    return np.asarray((abs(axes - centre) <= reach).all(axis=-1))


def _nearest_colour(colour: NDArray[np.float32]) -> str:
    return min(COLOURS, key=lambda name: float(np.linalg.norm(colour - np.array(COLOURS[name]))))


def _best_shape(mask: NDArray[np.float32], radius: float) -> str | None:
    """The shape whose template overlaps best (soft intersection over union) with a mask, (64, 64) in [0, 1]."""
    if not (mask > 0.5).any():
        return None
    templates, areas, half = _templates(radius)
    x, y = (round(c - 0.5) for c in _centroid(mask > 0.5))
    window = np.pad(mask, half)[y : y + 2 * half + 1, x : x + 2 * half + 1].astype(np.float32)
    shared = np.minimum(templates, window.ravel()).sum(axis=-1)
    overlap = shared / (areas + mask.sum() - shared)
    best = int(overlap.argmax())
    return SHAPES[best * len(SHAPES) // len(overlap)] if overlap[best] >= LEAST_OVERLAP else None


@cache
def _templates(radius: float) -> tuple[NDArray[np.float32], NDArray[np.float32], int]:
    """Every shape at radii and centres near the expected ones: (templates, window pixels), their areas, half of the window."""
    half = ceil(1.25 * radius) + 3
    size = 2 * half + 1
    shifts = np.arange(-1, 1.01, 0.5)
    templates = []
    for shape in SHAPES:
        for r in radius * np.linspace(0.75, 1.25, 7):
            middle = (size / 2, size / 2)
            x, y = (2 * m - c for m, c in zip(middle, _centroid(coverage(shape, middle, r, size)), strict=True))
            templates += [coverage(shape, (x + dx, y + dy), r, size).ravel() for dx in shifts for dy in shifts]
    stack = np.stack(templates)
    return stack, stack.sum(axis=-1), half


def _centroid(mask: NDArray[np.generic]) -> tuple[float, float]:
    """The centre of mass (x, y) of a mask, in pixels."""
    weight = np.asarray(mask, dtype=np.float64)
    y, x = np.indices(weight.shape) + 0.5
    return float((x * weight).sum() / weight.sum()), float((y * weight).sum() / weight.sum())
