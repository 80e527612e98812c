"""The judge: right on pictures known to be right, and wrong on pictures known to be wrong."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from jobs.train_shapes.judge import Verdict, judge, score
from jobs.train_shapes.pictures import COLOURS, SHAPES, Scene, Thing, draw, random_scene

Drawn = tuple[list[NDArray[np.uint8]], list[Scene]]


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    rng = np.random.default_rng(7)
    scenes = [random_scene(rng) for _ in range(300)]
    return [draw(scene, rng) for scene in scenes], scenes


def _worn(picture: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A picture as a small autoencoder gives it back: blurred, with some noise (about 22 dB)."""
    blurred = np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(1.0)), dtype=np.float64)
    return np.rint(np.clip(blurred + rng.normal(0, 8, picture.shape), 0, 255)).astype(np.uint8)


def _other(name: str, names: tuple[str, ...]) -> str:
    return names[(names.index(name) + 1) % len(names)]


def test_clean_pictures_are_right(drawn: Drawn) -> None:
    got = score(*drawn)
    assert got.colour >= 0.99 and got.background >= 0.99 and got.shape >= 0.98


def test_worn_pictures_are_right(drawn: Drawn) -> None:
    rng = np.random.default_rng(8)
    got = score([_worn(picture, rng) for picture in drawn[0]], drawn[1])
    assert got.colour >= 0.99 and got.background >= 0.99 and got.shape >= 0.95


def test_a_caption_with_other_colours_is_wrong_in_colour_only(drawn: Drawn) -> None:
    for picture, scene in zip(*drawn, strict=True):
        things = tuple(replace(thing, colour=_other(thing.colour, tuple(COLOURS))) for thing in scene.things)
        verdict = judge(picture, Scene(things, scene.background))
        assert verdict.background and not any(verdict.colours)


def test_a_caption_with_another_background_is_wrong_in_background_only(drawn: Drawn) -> None:
    for picture, scene in zip(*drawn, strict=True):
        verdict = judge(picture, Scene(scene.things, _other(scene.background, tuple(COLOURS))))
        assert not verdict.background and all(verdict.colours)


def test_a_caption_with_other_shapes_is_wrong_in_shape(drawn: Drawn) -> None:
    scenes = [Scene(tuple(replace(t, shape=_other(t.shape, SHAPES)) for t in s.things), s.background) for s in drawn[1]]
    got = score(drawn[0], scenes)
    assert got.colour >= 0.99 and got.shape <= 0.02


def test_swapped_colours_of_two_things_are_wrong() -> None:
    left, right = Thing("small", "red", "circle", "at the left"), Thing("small", "blue", "ring", "at the right")
    picture = draw(Scene((left, right), "white"), np.random.default_rng(0))
    swapped = Scene((replace(left, colour="blue"), replace(right, colour="red")), "white")
    assert judge(picture, swapped) == Verdict(True, (False, False), (True, True))


def test_one_of_two_things_missing_is_wrong() -> None:
    left, right = Thing("small", "red", "circle", "at the left"), Thing("small", "blue", "ring", "at the right")
    picture = draw(Scene((left,), "white"), np.random.default_rng(0))
    assert judge(picture, Scene((left, right), "white")) == Verdict(True, (True, False), (True, False))


def test_a_picture_of_nothing_has_nothing_right(drawn: Drawn) -> None:
    for scene in drawn[1][:20]:
        flat = np.broadcast_to(np.array(COLOURS[scene.background], dtype=np.uint8), (64, 64, 3))
        nothing = (False,) * len(scene.things)
        assert judge(flat, scene) == Verdict(False, nothing, nothing)


def test_noise_has_no_shape(drawn: Drawn) -> None:
    rng = np.random.default_rng(9)
    noise = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(20)]
    assert score(noise, drawn[1][:20]).shape == 0


def test_wrong_sizes_and_counts_are_refused(drawn: Drawn) -> None:
    with pytest.raises(ValueError, match=r"shape \(32, 32, 3\); allowed: \(64, 64, 3\)"):
        judge(np.zeros((32, 32, 3), dtype=np.uint8), drawn[1][0])
    with pytest.raises(ValueError, match="0 pictures"):
        score([], [])
