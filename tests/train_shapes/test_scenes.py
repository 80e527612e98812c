"""Rendered images and their captions."""

import numpy as np
import pytest

from jobs.train_shapes.scenes import SHAPES, Scene, coverage, random_scene, render

AREA = {"circle": 3.14, "square": 3.10, "triangle": 1.62, "diamond": 2.43, "cross": 2.36, "ring": 2.36}  # of radius 1


def _scenes(count: int, seed: int = 0, held_out: bool = False) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [random_scene(rng, held_out) for _ in range(count)]


def test_captions_are_unique_to_their_scenes() -> None:
    scenes = set(_scenes(2000))
    assert len({scene.caption for scene in scenes}) == len(scenes) > 1000


def test_about_8_percent_of_captions_are_held_out() -> None:
    distinct = set(_scenes(1500, seed=1)) | set(_scenes(1500, seed=2, held_out=True))
    assert {scene.held_out for scene in distinct} == {False, True}
    rng = np.random.default_rng(3)
    rendered = [Scene(random_scene(rng).figures, background) for _ in range(1000) for background in ("red", "blue", "white")]
    assert 0.06 < np.mean([scene.held_out for scene in set(rendered)]) < 0.10


@pytest.mark.parametrize("held_out", [False, True])
def test_scenes_are_training_or_held_out_as_requested(held_out: bool) -> None:
    assert all(scene.held_out == held_out for scene in _scenes(50, held_out=held_out))


def test_rendering_repeats_with_its_generator() -> None:
    scene = _scenes(1)[0]
    first, again, other = (render(scene, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert first.shape == (64, 64, 3) and first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("radius", [8.5, 14.0])
def test_a_shape_covers_its_area(shape: str, radius: float) -> None:
    share = coverage(shape, (32.0, 32.0), radius)
    assert share.shape == (64, 64)
    assert share.min() == 0 and share.max() <= 1
    assert share.sum() == pytest.approx(AREA[shape] * radius**2, rel=0.05)


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown shape 'star'; known are circle"):
        coverage("star", (32.0, 32.0), 8.0)
