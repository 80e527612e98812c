"""Encoding."""

import hashlib
import io
import sys
import threading
import time

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from hybridiff.errors import UsageError
from hybridiff.images import Encoder
from hybridiff.images.png import encode_png, filter_rows
from jobs.benchmark.corpus.synthetic import photograph

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize(("image_format", "quality"), [("png", 95), ("webp", 101)])
def test_lossless_formats_keep_every_pixel(image_format: str, quality: int) -> None:
    with Image.open(io.BytesIO(Encoder(image_format, quality).encode(PIXELS))) as image:
        assert np.array_equal(np.asarray(image), PIXELS)


@pytest.mark.parametrize(("quality", "sampling"), [(89, 2), (90, 0), (100, 0)])
def test_good_jpg_keeps_colour_at_full_resolution(quality: int, sampling: int) -> None:
    with Image.open(io.BytesIO(Encoder("jpg", quality).encode(PIXELS))) as image:
        assert (image.format, JpegImagePlugin.get_sampling(image)) == ("JPEG", sampling)


@pytest.mark.parametrize("image_format", ["png", "jpg", "webp"])
def test_the_bytes_are_the_same_each_time_and_say_nothing_else(image_format: str) -> None:
    encoded = Encoder(image_format, 80).encode(PIXELS)
    assert encoded == Encoder(image_format, 80).encode(np.asfortranarray(PIXELS))
    with Image.open(io.BytesIO(encoded)) as image:
        assert not image.getexif() and not {"exif", "icc_profile", "comment"} & image.info.keys()


def test_quality_matters() -> None:
    for image_format in ("jpg", "webp"):
        assert len(Encoder(image_format, 20).encode(PIXELS)) < len(Encoder(image_format, 95).encode(PIXELS))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("gif", 95), "output.image_format is 'gif'; allowed: png, jpg, webp"),
        (("webp", 102), "output.quality is 102; allowed: 1 to 100, or 101 for lossless"),
        (("jpg", 101), "output.quality is 101; allowed: 1 to 100 with output.image_format jpg"),
        (("png", 0), "output.quality is 0; allowed: 1 to 100 with output.image_format png"),
        (("png", 9.5), "output.quality is 9.5; allowed: a whole number"),
    ],
)
def test_an_encoder_that_does_not_exist_is_refused(given: tuple[str, int], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        Encoder(*given)
    assert str(refused.value) == said


def test_png_has_the_bytes_that_version_0_1_wrote() -> None:
    sha256 = hashlib.sha256(Encoder("png").encode(PIXELS)).hexdigest()
    assert sha256 == "0371165844c15db82715001ce446d21ca8c9d04f925002a6a667d3fff9981dab"


def _image(content: str, height: int, width: int) -> NDArray[np.uint8]:
    random, (y, x) = np.random.default_rng(height * width), np.indices((height, width))
    images = {
        "noise": random.integers(0, 256, (height, width, 3)),
        "slopes": np.stack([x, y, x + y], axis=-1),
        "flat": np.broadcast_to([255, 0, 7], (height, width, 3)),
        "striped rows": np.stack([255 * (y % 2)] * 3, axis=-1),
        "half and half": np.where(y[..., None] < height / 2, x[..., None] * [1, 2, 3], random.integers(0, 256, (height, 1, 3))),
    }
    return images[content].astype(np.uint8)


@pytest.mark.parametrize("content", ["noise", "slopes", "flat", "striped rows", "half and half"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (9, 1), (64, 48), (77, 131)])
def test_png_keeps_every_pixel_whatever_the_image(content: str, height: int, width: int) -> None:
    pixels = _image(content, height, width)
    with Image.open(io.BytesIO(encode_png(pixels))) as image:
        assert (image.mode, image.size) == ("RGB", (width, height))
        assert np.array_equal(np.asarray(image), pixels)
        assert not image.info


def test_each_row_of_a_png_has_the_filter_that_suits_it() -> None:
    random = np.random.default_rng(0)
    rows = np.broadcast_to(random.integers(0, 256, (64, 1, 3), np.uint8), (64, 64, 3))
    columns = np.broadcast_to(random.integers(0, 256, (1, 64, 3), np.uint8), (64, 64, 3))
    assert set(filter_rows(rows)[:, 0]) == {1}  # sub
    assert set(filter_rows(columns)[1:, 0]) == {2}  # up; the first row has none above it
    assert np.mean(filter_rows(photograph(0, 1024))[:, 0] == 3) > 0.9  # average: noise of two neighbours is less than of one


def test_png_is_smaller_than_pillows_for_a_photograph() -> None:
    pixels = photograph(0, 1024)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    assert len(encode_png(pixels)) < len(buffer.getvalue())


TURNS = 1000  # of another thread; where an encoder only pauses now and then, it gets a turn for each pause


@pytest.mark.parametrize("image_format", ["png", "jpg", "webp"])
def test_other_threads_run_while_an_image_is_encoded(image_format: str) -> None:
    """With this switch interval a thread runs only while another leaves the interpreter to it."""
    pixels = np.tile(photograph(0, 512), {"webp": (2, 2, 1), "png": (4, 4, 1), "jpg": (8, 8, 1)}[image_format])
    before, turns = sys.getswitchinterval(), 0
    sys.setswitchinterval(1000.0)
    try:
        for _ in range(20):  # on a busy machine this thread may be the one that waits
            thread, turns = threading.Thread(target=Encoder(image_format, 90).encode, args=(pixels,)), 0
            thread.start()
            while thread.is_alive():
                turns += 1
                time.sleep(0)
            if turns > TURNS:
                return
    finally:
        sys.setswitchinterval(before)
    pytest.fail(f"{turns} turns")
