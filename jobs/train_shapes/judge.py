"""Judges a picture against the scene that its caption asked for: by colours and templates, without a network.

Size is not judged, and place only in that a thing is looked for where it was asked.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from math import ceil

import numpy as np
from numpy.typing import NDArray

from jobs.train_shapes.pictures import COLOURS, PICTURE_SIZE, PLACES, SHAPES, SIZES, Scene, Thing, coverage

CORNER = 12  # pixels; no place reaches into a corner of this size
VISIBLE = 35.0  # least distance of a thing's colour from the background's, in RGB levels; palette colours are 87 or more apart
CERTAIN = 0.5  # share of the smallest shape's area (1.6 radius**2) whose most distant pixels tell the colour
LEAST_OVERLAP = 0.5  # below this the best template is no likeness


@dataclass(frozen=True)
class Verdict:
    """What is right in a picture: the background, and each thing's colour and shape. A picture of nothing has nothing right."""

    background: bool
    colours: tuple[bool, ...]
    shapes: tuple[bool, ...]


@dataclass(frozen=True)
class Score:
    """Shares of what is right, in [0, 1]: of things (colour, shape) and of pictures (background)."""

    colour: float
    background: float
    shape: float


def judge(picture: NDArray[np.uint8], scene: Scene) -> Verdict:
    """Compares a picture, (64, 64, 3) uint8, with the scene it was asked to show."""
    pixels = np.asarray(picture, dtype=np.float32)
    if pixels.shape != (PICTURE_SIZE, PICTURE_SIZE, 3):
        raise ValueError(f"picture has shape {pixels.shape}; allowed: ({PICTURE_SIZE}, {PICTURE_SIZE}, 3)")
    edges = np.r_[:CORNER, PICTURE_SIZE - CORNER : PICTURE_SIZE]
    background = np.median(pixels[np.ix_(edges, edges)].reshape(-1, 3), axis=0)
    seen = [_see(pixels, background, thing, len(scene.things) > 1) for thing in scene.things]
    return Verdict(
        background=_nearest_colour(background) == scene.background and any(colour is not None for colour, _ in seen),
        colours=tuple(colour == thing.colour for (colour, _), thing in zip(seen, scene.things, strict=True)),
        shapes=tuple(shape == thing.shape for (_, shape), thing in zip(seen, scene.things, strict=True)),
    )


def score(pictures: Iterable[NDArray[np.uint8]], scenes: Iterable[Scene]) -> Score:
    """Judges each picture, (64, 64, 3) uint8, against the scene of the same position and averages."""
    verdicts = [judge(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)]
    if not verdicts:
        raise ValueError("there are 0 pictures to score; allowed: 1 or more")
    return Score(
        colour=float(np.mean([right for verdict in verdicts for right in verdict.colours])),
        background=float(np.mean([verdict.background for verdict in verdicts])),
        shape=float(np.mean([right for verdict in verdicts for right in verdict.shapes])),
    )


def _see(
    pixels: NDArray[np.float32], background: NDArray[np.float32], thing: Thing, paired: bool
) -> tuple[str | None, str | None]:
    """The colour and shape found where a thing was asked; None for what is not there."""
    difference = (pixels - background) * _region(thing, paired)[..., None]
    distance = np.linalg.norm(difference, axis=-1)
    # The most distant pixels lie inside the thing: edges are mixed with the background.
    count = int(CERTAIN * 1.6 * SIZES[thing.size] ** 2)
    inner = np.argpartition(distance.ravel(), -count)[-count:]
    towards = np.median(difference.reshape(-1, 3)[inner], axis=0)
    if np.linalg.norm(towards) < VISIBLE:
        return None, None
    mask = np.clip(difference @ towards / (towards @ towards), 0, 1)
    return _nearest_colour(background + towards), _best_shape(mask, SIZES[thing.size])


def _region(thing: Thing, paired: bool) -> NDArray[np.bool_]:
    """Where a thing is looked for, (64, 64): around its place, or in its half of the picture where there are two."""
    centre = np.array(PLACES[thing.place])
    axes = np.stack(np.meshgrid(np.arange(PICTURE_SIZE) + 0.5, np.arange(PICTURE_SIZE) + 0.5), axis=-1)
    if paired:
        half = PICTURE_SIZE / 2
        inside = (axes < half) == (centre < half)
        return np.asarray(np.where(centre == half, True, inside).all(axis=-1))
    reach = 1.25 * SIZES[thing.size] + 6
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
    """Every shape at radii and centres around those asked: (templates, window pixels), their areas, and half of the window."""
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
