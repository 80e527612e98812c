"""Tars are about as large as was asked for, whatever the format and its quality."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hybridiff.config import OutputConfig
from hybridiff.corpus import Corpus, ShardWriter
from hybridiff.errors import UsageError
from tests.corpus.corpora import RUN_VALUES, USER_SCHEMA, result

PIXELS = 512
_OCTAVES = ((4, 60.0), (16, 30.0), (64, 15.0), (256, 6.0))  # cells across, and how far they differ in brightness


@pytest.fixture(scope="module")
def photographs() -> list[NDArray[np.uint8]]:
    """Quarters of an image of 1024 x 1024 pixels that compresses as photographs do."""
    random = np.random.default_rng(0)
    size = 2 * PIXELS
    image = np.full((size, size, 3), 128.0, np.float32)
    for cells, strength in _OCTAVES:
        coarse = strength * random.standard_normal((3, cells, cells)).astype(np.float32)
        smooth = [Image.fromarray(plane).resize((size, size), Image.Resampling.BICUBIC) for plane in coarse]
        image += np.stack([np.asarray(plane) for plane in smooth], axis=-1)
    image += 2 * random.standard_normal(image.shape, np.float32)
    whole = np.clip(image, 0, 255).astype(np.uint8)
    return [whole[y : y + PIXELS, x : x + PIXELS] for y in (0, PIXELS) for x in (0, PIXELS)]


@pytest.mark.parametrize(
    ("image_format", "quality"),
    [("png", 95), ("jpg", 75), ("jpg", 90), ("jpg", 95), ("jpg", 100), ("webp", 75), ("webp", 95), ("webp", 101)],
)
def test_tars_are_near_their_target(
    tmp_path: Path, photographs: list[NDArray[np.uint8]], image_format: str, quality: int
) -> None:
    target = 2_000_000
    output = OutputConfig(url=str(tmp_path), shard_bytes=target, image_format=image_format, quality=quality)
    images: Iterator[NDArray[np.uint8]] = islice(cycle(photographs), output.images_per_shard(PIXELS, PIXELS))
    writer = ShardWriter(Corpus(str(tmp_path)), 0, RUN_VALUES, USER_SCHEMA, output.encoder)
    for number, image in enumerate(images):
        writer.write(replace(result(number), image=image))
    writer.commit({})
    assert 0.7 * target < (tmp_path / "images/00000.tar").stat().st_size < 1.4 * target


def test_lossless_is_for_webp_alone() -> None:
    assert OutputConfig(url="x", image_format="webp", quality=101).quality == 101
    with pytest.raises(UsageError, match=r"^output.quality is 102; allowed: 1 to 100, or 101 for lossless$"):
        OutputConfig(url="x", image_format="webp", quality=102)
    for image_format in ("jpg", "png"):
        expected = f"^output.quality is 101; allowed: 1 to 100 with output.image_format {image_format}$"
        with pytest.raises(UsageError, match=expected):
            OutputConfig(url="x", image_format=image_format, quality=101)


def test_better_quality_means_fewer_images() -> None:
    for image_format, top in (("jpg", 100), ("webp", 101)):
        sizes = [
            OutputConfig(url="x", image_format=image_format, quality=one).encoder.bytes_per_pixel for one in range(1, top + 1)
        ]
        assert sizes == sorted(set(sizes))
    assert OutputConfig(url="x", quality=30).encoder.bytes_per_pixel == OutputConfig(url="x").encoder.bytes_per_pixel, (
        "png has none"
    )
    assert OutputConfig(url="x", shard_bytes=4_000_000, image_format="jpg").images_per_shard(1000, 1000) == 10
