"""How well a bundled model follows captions: images are judged against their scenes by colours and templates, without a network.

Verdicts do not judge size, and position only in that a figure is searched for where its caption puts it. The overlap with the
ideal rendering, where one figure is asked for, judges both and the form.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from math import ceil
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.train_shapes.architectures import TEXT_WINDOW
from jobs.train_shapes.scenes import (
    COLOURS,
    IMAGE_SIZE,
    POSITION_JITTER,
    POSITIONS,
    SHAPES,
    SIZE_JITTER,
    SIZES,
    Figure,
    Scene,
    coverage,
    random_scene,
)

BATCH_SIZE = 16
CORNER = 12  # pixels; no figure reaches into a corner of this size
VISIBLE = 35.0  # least distance of a figure's colour from the background's, in RGB levels; palette colours are 87 or more apart
CERTAIN = 0.5  # share of the smallest shape's area (1.6 radius**2) whose most distant pixels determine the colour
LEAST_OVERLAP = 0.5  # a template that overlaps less is no match
NEGATIVE_PROMPT = ""


@dataclass(frozen=True)
class Verdict:
    """What is right in an image: the background, and each figure's colour and shape. In an empty image nothing is right."""

    background: bool
    colours: tuple[bool, ...]
    shapes: tuple[bool, ...]


@dataclass(frozen=True)
class Score:
    """Shares that are right, in [0, 1]: of figures (colour, shape) and of images (background); and the median overlap.

    Args:
        colour: share of figures with the caption's colour.
        background: share of images with the caption's background.
        shape: share of figures with the caption's shape.
        overlap: median overlap with the ideal rendering, of images of one figure; None if there are none.
    """

    colour: float
    background: float
    shape: float
    overlap: float | None


def judge(image: NDArray[np.uint8], scene: Scene) -> Verdict:
    """Compares an image, (64, 64, 3) uint8, with the scene of its caption."""
    pixels, background = _pixels_and_background(image)
    seen = [_detect(pixels, background, figure, len(scene.figures) > 1) for figure in scene.figures]
    return Verdict(
        background=_nearest_colour(background) == scene.background and any(colour is not None for colour, _ in seen),
        colours=tuple(colour == figure.colour for (colour, _), figure in zip(seen, scene.figures, strict=True)),
        shapes=tuple(shape == figure.shape for (_, shape), figure in zip(seen, scene.figures, strict=True)),
    )


def overlap(image: NDArray[np.uint8], scene: Scene) -> float:
    """Intersection over union of an image's foreground, (64, 64, 3) uint8, and of the ideal rendering of its one figure.

    Training images vary by 2.5 pixels in position and 8 % in size, which the caption does not say: the ideal rendering is the
    nearest within this range. Every pixel that differs from the background by half of the figure's contrast is foreground.
    """
    if len(scene.figures) != 1:
        raise ValueError(f"scene has {len(scene.figures)} figures; allowed: 1")
    pixels, background = _pixels_and_background(image)
    figure = scene.figures[0]
    contrast = _contrast((pixels - background) * _region(figure, paired=False)[..., None], figure)
    if contrast is None:
        return 0.0
    foreground = np.linalg.norm(pixels - background, axis=-1) > 0.5 * np.linalg.norm(contrast)
    shift = [IMAGE_SIZE // 2 - round(c) for c in reversed(POSITIONS[figure.position])]
    centred = np.roll(foreground, shift, axis=(0, 1)).ravel().astype(np.float32)
    renderings, areas = _ideal_renderings(figure.shape, SIZES[figure.size])
    shared = renderings @ centred
    return float((shared / (areas + centred.sum() - shared)).max())


def score(images: Iterable[NDArray[np.uint8]], scenes: Iterable[Scene]) -> Score:
    """Judges each image, (64, 64, 3) uint8, against the scene of the same position and averages."""
    pairs = list(zip(images, scenes, strict=True))
    verdicts = [judge(image, scene) for image, scene in pairs]
    overlaps = [overlap(image, scene) for image, scene in pairs if len(scene.figures) == 1]
    if not verdicts:
        raise ValueError("there are 0 images to score; allowed: 1 or more")
    return Score(
        colour=float(np.mean([right for verdict in verdicts for right in verdict.colours])),
        background=float(np.mean([verdict.background for verdict in verdicts])),
        shape=float(np.mean([right for verdict in verdicts for right in verdict.shapes])),
        overlap=float(np.median(overlaps)) if overlaps else None,
    )


def held_out_scenes(count: int, seed: int = 7) -> list[Scene]:
    """Scenes with held-out captions; fewer are always the first ones of more."""
    rng = np.random.default_rng(seed)
    return [random_scene(rng, held_out=True) for _ in range(count)]


def score_pipeline(
    pipeline: Any, scenes: list[Scene], steps: int = 50, guidance_scale: float = 5.0, true_cfg_scale: float | None = None
) -> Score:
    """Generates an image for each scene's caption, image i with seed i, and judges them.

    Args:
        pipeline: a bundled model's pipeline.
        scenes: scenes to generate.
        steps: number of denoising steps.
        guidance_scale: guidance scale; of a distilled model, the guidance embedding.
        true_cfg_scale: scale of FluxPipeline's guidance by two calls, against the empty prompt; None for one call.
    """
    images = []
    for start in range(0, len(scenes), BATCH_SIZE):
        captions = [scene.caption for scene in scenes[start : start + BATCH_SIZE]]
        options = call_options(pipeline)
        if true_cfg_scale is not None:
            options |= {"true_cfg_scale": true_cfg_scale, "negative_prompt": [NEGATIVE_PROMPT] * len(captions)}
        images += pipeline(
            captions,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=[torch.Generator("cpu").manual_seed(start + i) for i in range(len(captions))],
            **options,
        ).images
    return score([np.asarray(image) for image in images], scenes)


def call_options(pipeline: Any) -> dict[str, Any]:
    """What a bundled model's pipeline is called with besides prompts: its size where it does not know it, no needless padding."""
    if type(pipeline).__name__ == "FluxPipeline":
        return {"height": IMAGE_SIZE, "width": IMAGE_SIZE, "max_sequence_length": TEXT_WINDOW}
    return {"max_sequence_length": 8} if hasattr(pipeline, "transformer") else {}


def _pixels_and_background(image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """An image as floats, and its background colour: the median of its corners."""
    pixels = np.asarray(image, dtype=np.float32)
    if pixels.shape != (IMAGE_SIZE, IMAGE_SIZE, 3):
        raise ValueError(f"image has shape {pixels.shape}; allowed: ({IMAGE_SIZE}, {IMAGE_SIZE}, 3)")
    edges = np.r_[:CORNER, IMAGE_SIZE - CORNER : IMAGE_SIZE]
    return pixels, np.median(pixels[np.ix_(edges, edges)].reshape(-1, 3), axis=0)


def _detect(
    pixels: NDArray[np.float32], background: NDArray[np.float32], figure: Figure, paired: bool
) -> tuple[str | None, str | None]:
    """Colour and shape found where a figure should be; None for what is not there."""
    difference = (pixels - background) * _region(figure, paired)[..., None]
    contrast = _contrast(difference, figure)
    if contrast is None:
        return None, None
    mask = np.clip(difference @ contrast / (contrast @ contrast), 0, 1)
    return _nearest_colour(background + contrast), _best_shape(mask, SIZES[figure.size])


def _contrast(difference: NDArray[np.float32], figure: Figure) -> NDArray[np.float32] | None:
    """A figure's colour less the background's, from the pixels' differences, (64, 64, 3); None if nothing is visible."""
    distance = np.linalg.norm(difference, axis=-1)
    # The most distant pixels lie inside the figure: edges are mixed with the background.
    count = int(CERTAIN * 1.6 * SIZES[figure.size] ** 2)
    inner = np.argpartition(distance.ravel(), -count)[-count:]
    contrast = np.median(difference.reshape(-1, 3)[inner], axis=0)
    return contrast if np.linalg.norm(contrast) >= VISIBLE else None


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


@cache
def _ideal_renderings(shape: str, radius: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A figure in the middle at each position and size within the jitter of training images: (renderings, pixels), areas."""
    shifts = np.linspace(-POSITION_JITTER, POSITION_JITTER, 11)
    radii = radius * np.linspace(1 - SIZE_JITTER, 1 + SIZE_JITTER, 5)
    middle = IMAGE_SIZE / 2
    masks = [coverage(shape, (middle + dx, middle + dy), r) > 0.5 for r in radii for dx in shifts for dy in shifts]
    stack = np.stack(masks).reshape(len(masks), -1).astype(np.float32)
    return stack, stack.sum(axis=-1)


def _centroid(mask: NDArray[np.generic]) -> tuple[float, float]:
    """The centre of mass (x, y) of a mask, in pixels."""
    weight = np.asarray(mask, dtype=np.float64)
    y, x = np.indices(weight.shape) + 0.5
    return float((x * weight).sum() / weight.sum()), float((y * weight).sum() / weight.sum())
