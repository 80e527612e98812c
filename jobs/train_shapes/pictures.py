"""Captioned pictures of plain shapes, drawn procedurally: the training set of the bundled models.

A scene is one shape, or two side by side, on a flat background. Its caption says everything but a small
jitter of place, size and shade, so that a picture can be judged against its caption without a human.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

PICTURE_SIZE = 64
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (247, 140, 30),
    "yellow": (250, 222, 60),
    "green": (40, 160, 70),
    "cyan": (70, 205, 225),
    "blue": (40, 80, 210),
    "purple": (150, 60, 190),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
SIZES = {"small": 8.5, "large": 14.0}  # radius in pixels
PLACES: dict[str, tuple[float, float]] = {  # centre (x, y) in pixels
    "in the middle": (32, 32),
    "at the left": (17, 32),
    "at the right": (47, 32),
    "at the top": (32, 17),
    "at the bottom": (32, 47),
}
PAIRED_PLACES = (("at the left", "at the right"), ("at the top", "at the bottom"))
HELD_OUT_SHARE = 0.08  # of all captions are never trained on


@dataclass(frozen=True)
class Thing:
    """One shape of a scene."""

    size: str
    colour: str
    shape: str
    place: str


@dataclass(frozen=True)
class Scene:
    """What a caption says: one or two things on a background."""

    things: tuple[Thing, ...]
    background: str

    @cached_property
    def caption(self) -> str:
        """The scene in words; the inverse of nothing, but unique for each scene."""
        words = [f"a {t.size} {t.colour} {t.shape}" for t in self.things]
        if len(self.things) == 1:
            return f"{words[0]} on a {self.background} background {self.things[0].place}"
        placed = [f"{w} {t.place}" for w, t in zip(words, self.things, strict=True)]
        return f"{' and '.join(placed)} on a {self.background} background"

    @property
    def held_out(self) -> bool:
        """Whether the scene is kept for measuring and never trained on (decided by the caption's hash)."""
        digest = hashlib.sha256(self.caption.encode()).digest()
        return int.from_bytes(digest[:4], "big") / 2**32 < HELD_OUT_SHARE


def random_scene(rng: np.random.Generator, held_out: bool = False, two_share: float = 0.2) -> Scene:
    """Draws a scene from the training captions, or from those held out."""
    while True:
        background, *colours = (str(c) for c in rng.permutation(list(COLOURS))[:3])
        two = rng.random() < two_share
        places = PAIRED_PLACES[rng.integers(2)] if two else (str(rng.choice(list(PLACES))),)
        things = tuple(
            Thing("small" if two else str(rng.choice(list(SIZES))), colour, str(rng.choice(SHAPES)), place)
            for colour, place in zip(colours, places, strict=False)
        )
        scene = Scene(things, background)
        if scene.held_out == held_out:
            return scene


def coverage(shape: str, centre: tuple[float, float], radius: float, size: int = PICTURE_SIZE) -> NDArray[np.float32]:
    """The share of each pixel that a shape covers: (size, size) in [0, 1], edges smoothed over one pixel."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) + 0.5
    x, y = x - centre[0], y - centre[1]
    if shape == "circle":
        distance = np.hypot(x, y) - radius
    elif shape == "square":
        distance = np.maximum(abs(x), abs(y)) - 0.88 * radius
    elif shape == "diamond":
        distance = (abs(x) + abs(y)) / np.sqrt(2) - 0.78 * radius
    elif shape == "triangle":  # pointing up
        distance = np.maximum(y - 0.8 * radius, (2 * abs(x) - y - radius) / np.sqrt(5))
    elif shape == "cross":
        arm, width = radius, 0.36 * radius
        bars = [np.maximum(abs(a) - arm, abs(b) - width) for a, b in ((x, y), (y, x))]
        distance = np.minimum(*bars)
    elif shape == "ring":
        distance = abs(np.hypot(x, y) - 0.75 * radius) - 0.25 * radius
    else:
        raise ValueError(f"unknown shape {shape!r}; known are {', '.join(SHAPES)}")
    return np.clip(0.5 - distance, 0, 1).astype(np.float32)


def draw(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draws a scene with its jitter: (64, 64, 3) uint8."""

    def shade(name: str) -> NDArray[np.float64]:
        return np.clip(np.array(COLOURS[name]) + rng.normal(0, 5) + rng.normal(0, 3, 3), 0, 255)

    picture = np.broadcast_to(shade(scene.background), (PICTURE_SIZE, PICTURE_SIZE, 3))
    for thing in scene.things:
        x, y = (c + rng.uniform(-2.5, 2.5) for c in PLACES[thing.place])
        radius = SIZES[thing.size] * rng.uniform(0.92, 1.08)
        alpha = coverage(thing.shape, (x, y), radius)[..., None]
        picture = picture * (1 - alpha) + shade(thing.colour) * alpha
    return np.rint(picture).astype(np.uint8)
