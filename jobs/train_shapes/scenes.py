"""Captioned images of plain shapes, rendered procedurally: the training set of the bundled models.

A scene is one shape, or two side by side, on a flat background. Its caption says everything but a small jitter of position, size
and shade, so that an image can be judged against its caption without a human.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

IMAGE_SIZE = 64
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
POSITIONS: dict[str, tuple[float, float]] = {  # centre (x, y) in pixels
    "in the middle": (32, 32),
    "at the left": (17, 32),
    "at the right": (47, 32),
    "at the top": (32, 17),
    "at the bottom": (32, 47),
}
PAIRED_POSITIONS = (("at the left", "at the right"), ("at the top", "at the bottom"))
POSITION_JITTER = 2.5  # pixels
SIZE_JITTER = 0.08  # share of the radius
HELD_OUT_SHARE = 0.08  # of all captions


@dataclass(frozen=True)
class Figure:
    """One shape of a scene."""

    size: str
    colour: str
    shape: str
    position: str


@dataclass(frozen=True)
class Scene:
    """The content of a caption: one or two figures on a background."""

    figures: tuple[Figure, ...]
    background: str

    @cached_property
    def caption(self) -> str:
        """The scene in words, unique for each scene."""
        words = [f"a {t.size} {t.colour} {t.shape}" for t in self.figures]
        if len(self.figures) == 1:
            return f"{words[0]} on a {self.background} background {self.figures[0].position}"
        positioned = [f"{w} {t.position}" for w, t in zip(words, self.figures, strict=True)]
        return f"{' and '.join(positioned)} on a {self.background} background"

    @property
    def held_out(self) -> bool:
        """Whether the scene is held out from training, by the hash of its caption."""
        digest = hashlib.sha256(self.caption.encode()).digest()
        return int.from_bytes(digest[:4], "big") / 2**32 < HELD_OUT_SHARE


def random_scene(rng: np.random.Generator, held_out: bool = False, two_share: float = 0.2) -> Scene:
    """A random scene with a training caption, or with a held-out one."""
    while True:
        background, *colours = (str(c) for c in rng.permutation(list(COLOURS))[:3])
        two = rng.random() < two_share
        positions = PAIRED_POSITIONS[rng.integers(2)] if two else (str(rng.choice(list(POSITIONS))),)
        figures = tuple(
            Figure("small" if two else str(rng.choice(list(SIZES))), colour, str(rng.choice(SHAPES)), position)
            for colour, position in zip(colours, positions, strict=False)
        )
        scene = Scene(figures, background)
        if scene.held_out == held_out:
            return scene


def coverage(shape: str, centre: tuple[float, float], radius: float, size: int = IMAGE_SIZE) -> NDArray[np.float32]:
    """Share of each pixel that a shape covers: (size, size) in [0, 1], edges smoothed over one pixel."""
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


def render(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The image of a scene, with random jitter: (64, 64, 3) uint8."""

    def shade(name: str) -> NDArray[np.float64]:
        return np.clip(np.array(COLOURS[name]) + rng.normal(0, 5) + rng.normal(0, 3, 3), 0, 255)

    image = np.broadcast_to(shade(scene.background), (IMAGE_SIZE, IMAGE_SIZE, 3))
    for figure in scene.figures:
        x, y = (c + rng.uniform(-POSITION_JITTER, POSITION_JITTER) for c in POSITIONS[figure.position])
        radius = SIZES[figure.size] * rng.uniform(1 - SIZE_JITTER, 1 + SIZE_JITTER)
        alpha = coverage(figure.shape, (x, y), radius)[..., None]
        image = image * (1 - alpha) + shade(figure.colour) * alpha
    return np.rint(image).astype(np.uint8)
