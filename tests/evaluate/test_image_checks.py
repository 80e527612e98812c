"""A planted set of black, flat, broken and repeated images is found, all of it and nothing else."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hybridiff.evaluate.metrics import image_checks as checks
from hybridiff.evaluate.metrics.image_checks import Duplicate, duplicates, fingerprint, image_checks, phash
from jobs.train_shapes.scenes import Figure, Scene, random_scene, render


def shapes(count: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    random = np.random.default_rng(seed)
    return [render(random_scene(random), random) for _ in range(count)]


def jpeg(image: NDArray[np.uint8], quality: int = 95) -> NDArray[np.uint8]:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def test_black_and_flat_images_are_found_and_no_others() -> None:
    images = shapes(60)
    assert not any(image_checks(image).flat for image in images)
    random = np.random.default_rng(0)
    black = random.integers(0, 6, (64, 64, 3), dtype=np.uint8)
    grey = random.integers(126, 131, (64, 64, 3), dtype=np.uint8)
    assert image_checks(black) == checks.ImageChecks(True, True, False) == image_checks(np.zeros((8, 8, 3), np.uint8))
    assert image_checks(grey) == checks.ImageChecks(False, True, False)
    dark = np.zeros((64, 64, 3), np.uint8)
    dark[20:40, 20:40] = 60
    assert image_checks(dark) == checks.ImageChecks(False, False, False)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_floating_point_images_may_hold_nan(broken: float) -> None:
    image = np.random.default_rng(0).random((8, 8, 3))
    assert not image_checks(image).nan and not image_checks(image).black
    image[3, 3, 1] = broken
    assert image_checks(image).nan


def test_planted_duplicates_are_found_and_no_others() -> None:
    images = shapes(100)
    keys = [f"{i:03d}" for i in range(100)]
    planted = [
        ("900", images[3]),
        ("901", jpeg(images[5])),
        ("902", jpeg(images[7], 80)),
        ("903", images[3]),
        ("000a", images[0]),
    ]
    found = duplicates([*keys, *(k for k, _ in planted)], [fingerprint(i) for i in [*images, *(i for _, i in planted)]])
    assert found[100:] == [
        Duplicate("003", True), Duplicate("005", False), Duplicate("007", False), Duplicate("003", True), Duplicate("000", True),
    ]  # fmt: skip
    assert found[:100] == [None] * 100


def test_colour_alone_makes_a_different_image() -> None:
    scenes = [Scene((Figure("large", colour, "circle", "in the middle"),), "white") for colour in ("red", "blue", "green")]
    images = [render(scene, np.random.default_rng(0)) for scene in scenes]
    assert duplicates(list("abc"), [fingerprint(image) for image in images]) == [None] * 3


def test_the_smallest_key_is_the_original_in_any_order() -> None:
    one, other = shapes(2)
    prints = [fingerprint(image) for image in (one, jpeg(one), other, one)]
    assert duplicates(["c", "a", "d", "b"], prints) == [Duplicate("a", True), None, None, Duplicate("a", False)]


def test_near_duplicates_by_other_sizes() -> None:
    (one,) = shapes(1)
    large = np.asarray(Image.fromarray(one).resize((128, 128), Image.Resampling.BICUBIC))
    assert (phash(one) ^ phash(large)).bit_count() <= checks.NEAR_BITS
    assert duplicates(["a", "b"], [fingerprint(one), fingerprint(large)]) == [None, Duplicate("a", False)]


def test_flat_images_have_one_hash() -> None:
    random = np.random.default_rng(0)
    hashes = {phash(random.integers(126, 131, (64, 64, 3), dtype=np.uint8)) for _ in range(5)}
    assert len(hashes) == 1


def test_an_image_is_compared_with_a_bounded_number_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    prints = [
        checks.Fingerprint(bytes([i // 256, i % 256]), 0, random.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for i in range(600)
    ]
    most = 0
    original = checks._first_near

    def counted(one: checks.Fingerprint, candidates: list[int], all_prints: list[checks.Fingerprint]) -> int | None:
        nonlocal most
        most = max(most, len(set(candidates)))
        return original(one, candidates, all_prints)

    monkeypatch.setattr(checks, "_first_near", counted)
    assert duplicates([f"{i:04d}" for i in range(600)], prints) == [None] * 600
    assert most == 512
