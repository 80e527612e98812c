"""Encoding."""

import io

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from hybridiff.sinks.images import encode_image

PICTURE = np.random.default_rng(0).integers(0, 256, (24, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize(("image_format", "quality"), [("png", 95), ("webp", 101)])
def test_lossless_formats_keep_every_pixel(image_format: str, quality: int) -> None:
    with Image.open(io.BytesIO(encode_image(PICTURE, image_format, quality))) as image:
        assert np.array_equal(np.asarray(image), PICTURE)


@pytest.mark.parametrize(("quality", "sampling"), [(89, 2), (90, 0), (100, 0), (101, 0)])
def test_good_jpg_keeps_colour_at_full_resolution(quality: int, sampling: int) -> None:
    with Image.open(io.BytesIO(encode_image(PICTURE, "jpg", quality))) as image:
        assert (image.format, JpegImagePlugin.get_sampling(image)) == ("JPEG", sampling)


@pytest.mark.parametrize("image_format", ["png", "jpg", "webp"])
def test_the_bytes_are_the_same_each_time_and_say_nothing_else(image_format: str) -> None:
    encoded = encode_image(PICTURE, image_format, 80)
    assert encoded == encode_image(np.asfortranarray(PICTURE), image_format, 80)
    with Image.open(io.BytesIO(encoded)) as image:
        assert not image.getexif() and not {"exif", "icc_profile", "comment"} & image.info.keys()


def test_quality_matters() -> None:
    for image_format in ("jpg", "webp"):
        assert len(encode_image(PICTURE, image_format, 20)) < len(encode_image(PICTURE, image_format, 95))


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="'gif'; allowed: png, jpg, webp"):
        encode_image(PICTURE, "gif", 95)
