"""Pictures to bytes: the same bytes from run to run."""

import hashlib
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hybridiff.corpus.png import encode_png

LOSSLESS = 101  # quality of lossless webp
_FINE = 90  # jpg quality from which colour is stored at full resolution (4:4:4)


def encode_image(array: NDArray[np.uint8], image_format: str, quality: int) -> bytes:
    """Encodes a picture without metadata or times.

    Args:
        array: (height, width, 3) uint8.
        image_format: png, jpg or webp.
        quality: Of jpg and webp, 1 to 100; 101 is lossless webp, and the best jpg.
    """
    assert array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8, (array.shape, array.dtype)
    array = np.ascontiguousarray(array)
    if image_format == "png":
        return encode_png(array)
    if image_format == "jpg":
        subsampling = "4:4:4" if quality >= _FINE else "4:2:0"
        return _saved(array, "JPEG", quality=min(quality, 100), subsampling=subsampling)
    if image_format == "webp":
        return _saved(array, "WEBP", lossless=quality >= LOSSLESS, quality=min(quality, 100), method=4)
    raise ValueError(f"image format is {image_format!r}; allowed: png, jpg, webp")


def _saved(array: NDArray[np.uint8], name: str, **options: Any) -> bytes:
    """Pillow's file of a picture; into a real file, as it lets other threads run only then."""
    with os.fdopen(os.memfd_create("image"), "w+b") as file:
        Image.fromarray(array).save(file, name, **options)
        file.seek(0)
        return file.read()


def encode_and_hash(array: NDArray[np.uint8], image_format: str, quality: int) -> tuple[bytes, str]:
    """An image file and its SHA-256 in hexadecimal; both let other threads run meanwhile."""
    encoded = encode_image(array, image_format, quality)
    return encoded, hashlib.sha256(encoded).hexdigest()
