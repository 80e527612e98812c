"""Pictures that compress as photographs do."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_OCTAVES = ((4, 60.0), (16, 30.0), (64, 15.0), (256, 6.0))  # cells across the picture, and how far they differ in brightness
_NOISE = 2.0  # of a sensor, per pixel and colour


def photograph(number: int, pixels: int) -> NDArray[np.uint8]:
    """A picture (pixels, pixels, 3): smooth random fields, coarse ones stronger than fine ones, and a little noise.

    With 1024 pixels it takes about 1.5 MB as PNG and 0.4 MB as JPEG of quality 95.
    """
    random = np.random.default_rng(number)
    picture = np.full((pixels, pixels, 3), 128.0, np.float32)
    for cells, strength in _OCTAVES:
        if cells <= pixels:
            coarse = strength * random.standard_normal((3, cells, cells)).astype(np.float32)
            smooth = [Image.fromarray(plane).resize((pixels, pixels), Image.Resampling.BICUBIC) for plane in coarse]
            picture += np.stack([np.asarray(plane) for plane in smooth], axis=-1)
    picture += _NOISE * random.standard_normal(picture.shape, np.float32)
    return np.clip(picture, 0, 255).astype(np.uint8)
