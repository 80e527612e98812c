"""The judge: right on images known to be right, and wrong on images known to be wrong."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from jobs.train_shapes.evaluation import Verdict, judge, overlap, score
from jobs.train_shapes.scenes import COLOURS, POSITIONS, SHAPES, SIZES, Figure, Scene, coverage, random_scene, render

Rendered = tuple[list[NDArray[np.uint8]], list[Scene]]


@pytest.fixture(scope="module")
def rendered() -> Rendered:
    rng = np.random.default_rng(7)
    scenes = [random_scene(rng) for _ in range(300)]
    return [render(scene, rng) for scene in scenes], scenes


def _degraded(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """An image as a small autoencoder gives it back: blurred, with some noise (about 22 dB)."""
    blurred = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(1.0)), dtype=np.float64)
    return np.rint(np.clip(blurred + rng.normal(0, 8, image.shape), 0, 255)).astype(np.uint8)


def _other(name: str, names: tuple[str, ...]) -> str:
    return names[(names.index(name) + 1) % len(names)]


def test_clean_images_are_right(rendered: Rendered) -> None:
    got = score(*rendered)
    assert got.colour >= 0.99 and got.background >= 0.99 and got.shape >= 0.98


def test_degraded_images_are_right(rendered: Rendered) -> None:
    rng = np.random.default_rng(8)
    got = score([_degraded(image, rng) for image in rendered[0]], rendered[1])
    assert got.colour >= 0.99 and got.background >= 0.99 and got.shape >= 0.95


def test_a_caption_with_other_colours_is_wrong_in_colour_only(rendered: Rendered) -> None:
    for image, scene in zip(*rendered, strict=True):
        figures = tuple(replace(figure, colour=_other(figure.colour, tuple(COLOURS))) for figure in scene.figures)
        verdict = judge(image, Scene(figures, scene.background))
        assert verdict.background and not any(verdict.colours)


def test_a_caption_with_another_background_is_wrong_in_background_only(rendered: Rendered) -> None:
    for image, scene in zip(*rendered, strict=True):
        verdict = judge(image, Scene(scene.figures, _other(scene.background, tuple(COLOURS))))
        assert not verdict.background and all(verdict.colours)


def test_a_caption_with_other_shapes_is_wrong_in_shape(rendered: Rendered) -> None:
    scenes = [Scene(tuple(replace(t, shape=_other(t.shape, SHAPES)) for t in s.figures), s.background) for s in rendered[1]]
    got = score(rendered[0], scenes)
    assert got.colour >= 0.99 and got.shape <= 0.02


def test_swapped_colours_of_two_figures_are_wrong() -> None:
    left, right = Figure("small", "red", "circle", "at the left"), Figure("small", "blue", "ring", "at the right")
    image = render(Scene((left, right), "white"), np.random.default_rng(0))
    swapped = Scene((replace(left, colour="blue"), replace(right, colour="red")), "white")
    assert judge(image, swapped) == Verdict(True, (False, False), (True, True))


def test_one_of_two_figures_missing_is_wrong() -> None:
    left, right = Figure("small", "red", "circle", "at the left"), Figure("small", "blue", "ring", "at the right")
    image = render(Scene((left,), "white"), np.random.default_rng(0))
    assert judge(image, Scene((left, right), "white")) == Verdict(True, (True, False), (True, False))


def test_in_an_empty_image_nothing_is_right(rendered: Rendered) -> None:
    for scene in rendered[1][:20]:
        flat = np.broadcast_to(np.array(COLOURS[scene.background], dtype=np.uint8), (64, 64, 3))
        nothing = (False,) * len(scene.figures)
        assert judge(flat, scene) == Verdict(False, nothing, nothing)


def test_noise_has_no_shape(rendered: Rendered) -> None:
    rng = np.random.default_rng(9)
    noise = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(20)]
    assert score(noise, rendered[1][:20]).shape == 0


def test_wrong_sizes_and_counts_are_refused(rendered: Rendered) -> None:
    with pytest.raises(ValueError, match=r"shape \(32, 32, 3\); allowed: \(64, 64, 3\)"):
        judge(np.zeros((32, 32, 3), dtype=np.uint8), rendered[1][0])
    with pytest.raises(ValueError, match="0 images"):
        score([], [])


def _single(rendered: Rendered) -> list[tuple[NDArray[np.uint8], Scene]]:
    return [(image, scene) for image, scene in zip(*rendered, strict=True) if len(scene.figures) == 1][:100]


def test_clean_images_overlap_with_the_ideal_rendering(rendered: Rendered) -> None:
    assert min(overlap(image, scene) for image, scene in _single(rendered)) >= 0.9


def test_degraded_images_overlap_with_the_ideal_rendering(rendered: Rendered) -> None:
    rng = np.random.default_rng(8)
    overlaps = [overlap(_degraded(image, rng), scene) for image, scene in _single(rendered)]
    assert np.median(overlaps) >= 0.93 and min(overlaps) >= 0.8


def test_the_score_has_the_median_overlap_of_images_with_one_figure(rendered: Rendered) -> None:
    single = _single(rendered)
    assert score(*rendered).overlap == pytest.approx(np.median([overlap(*pair) for pair in single]), abs=0.02)
    pairs = [(i, s) for i, s in zip(*rendered, strict=True) if len(s.figures) == 2]
    assert score(*zip(*pairs, strict=True)).overlap is None
    with pytest.raises(ValueError, match="2 figures; allowed: 1"):
        overlap(*pairs[0])


def _flat(scene: Scene, mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The scene's colours with another form: its figure's colour where the mask is set."""
    colours = np.array([COLOURS[scene.background], COLOURS[scene.figures[0].colour]], dtype=np.uint8)
    return colours[mask.astype(int)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
def test_what_is_not_the_ideal_rendering_overlaps_less(shape: str, size: str) -> None:
    scene = Scene((Figure(size, "red", shape, "at the left"),), "white")
    centre, radius = POSITIONS["at the left"], SIZES[size]

    def overlap_of(mask: NDArray[np.bool_]) -> float:
        return overlap(_flat(scene, mask), scene)

    def mask_of(shape: str, dx: float = 0.0, scale: float = 1.0) -> NDArray[np.bool_]:
        return coverage(shape, (centre[0] + dx, centre[1]), scale * radius) > 0.5

    ideal = mask_of(shape)
    assert overlap_of(ideal) >= 0.99
    assert overlap_of(mask_of(_other(shape, SHAPES))) < 0.88  # a circle and a square have 0.85 in common
    assert overlap_of(mask_of(shape, dx=8)) < 0.85
    assert overlap_of(mask_of(shape, scale=1.3)) < 0.85
    assert overlap_of(mask_of(shape, scale=0.7)) < 0.85
    stray = ideal.copy()
    stray[40:64, 40:64] = True
    assert overlap_of(stray) < 0.85


@pytest.mark.parametrize("shape", ["circle", "square", "diamond"])
def test_a_hollow_shape_overlaps_less(shape: str) -> None:
    scene = Scene((Figure("large", "red", shape, "in the middle"),), "white")
    hollow = (coverage(shape, (32, 32), 14) > 0.5) & ~(coverage(shape, (32, 32), 8) > 0.5)
    assert overlap(_flat(scene, hollow), scene) < 0.8


def test_an_empty_image_does_not_overlap(rendered: Rendered) -> None:
    for _, scene in _single(rendered)[:20]:
        assert overlap(_flat(scene, np.zeros((64, 64), dtype=bool)), scene) == 0
