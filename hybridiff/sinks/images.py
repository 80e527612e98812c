"""Pictures to bytes: the same bytes from run to run."""

import hashlib
import io
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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
    image = Image.fromarray(np.ascontiguousarray(array))
    buffer = io.BytesIO()
    if image_format == "png":
        # Of what PNG leaves of a photograph no repetition but runs is worth looking for: the usual search takes
        # five times as long and finds nothing.
        image.save(buffer, "PNG", compress_type=zlib.Z_RLE)
    elif image_format == "jpg":
        subsampling = "4:4:4" if quality >= _FINE else "4:2:0"
        image.save(buffer, "JPEG", quality=min(quality, 100), subsampling=subsampling)
    elif image_format == "webp":
        image.save(buffer, "WEBP", lossless=quality >= LOSSLESS, quality=min(quality, 100), method=4)
    else:
        raise ValueError(f"image format is {image_format!r}; allowed: png, jpg, webp")
    return buffer.getvalue()


def encode_and_hash(array: NDArray[np.uint8], image_format: str, quality: int) -> tuple[bytes, str]:
    """An image file and its SHA-256 in hexadecimal; both let other threads run meanwhile."""
    encoded = encode_image(array, image_format, quality)
    return encoded, hashlib.sha256(encoded).hexdigest()
