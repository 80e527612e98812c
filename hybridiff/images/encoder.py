"""The encoder of a corpus: its format and quality, checked once, and what follows from them."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from hybridiff.errors import require, require_choice, require_whole

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ImageFormat = Literal["png", "jpg", "webp"]
IMAGE_FORMATS = get_args(ImageFormat)
LOSSLESS = 101  # quality of lossless webp
_FULL_COLOUR = 90  # jpg quality from which colour is stored at full resolution (4:4:4)
_BYTES_PER_PIXEL = {  # of photographs of 1024 x 1024 pixels, by quality; interpolated linearly
    "png": ((1, 1.5),),
    "jpg": ((1, 0.02), (50, 0.06), (75, 0.1), (89, 0.16), (90, 0.27), (95, 0.4), (98, 0.85), (100, 1.45)),
    "webp": ((1, 0.01), (50, 0.04), (75, 0.06), (90, 0.13), (95, 0.25), (100, 0.37), (101, 1.4)),
}


@dataclass(frozen=True)
class Encoder:
    """Encodes images in one format at one quality, without metadata or times. Threads may share it.

    Args:
        image_format: png, jpg or webp; also the file extension.
        quality: quality of jpg (1 to 100) and webp (1 to 100; 101 is lossless); png ignores it and is always lossless.

    Raises:
        UsageError: the format is unknown, or does not have this quality.
    """

    image_format: str = "png"
    quality: int = 95

    def __post_init__(self) -> None:
        require_choice("output.image_format", self.image_format, IMAGE_FORMATS)
        require_whole("output.quality", self.quality)
        webp = self.image_format == "webp"
        allowed = "1 to 100, or 101 for lossless" if webp else f"1 to 100 with output.image_format {self.image_format}"
        require(1 <= self.quality <= 100 + webp, "output.quality", self.quality, allowed)

    def encode(self, array: "NDArray[np.uint8]") -> bytes:
        """An image file; other threads run meanwhile.

        Args:
            array: pixels, (height, width, 3) uint8.
        """
        import numpy as np  # here, as options are checked by this class before anything heavy is loaded

        assert array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8, (array.shape, array.dtype)
        array = np.ascontiguousarray(array)
        if self.image_format == "png":
            from hybridiff.images.png import encode_png

            return encode_png(array)
        if self.image_format == "jpg":
            subsampling = "4:4:4" if self.quality >= _FULL_COLOUR else "4:2:0"
            return _saved(array, "JPEG", quality=self.quality, subsampling=subsampling)
        return _saved(array, "WEBP", lossless=self.quality >= LOSSLESS, quality=min(self.quality, 100), method=4)

    @property
    def bytes_per_pixel(self) -> float:
        """Bytes that a photograph takes per pixel."""
        known = _BYTES_PER_PIXEL[self.image_format]
        below = max((one for one in known if one[0] <= self.quality), default=known[0])
        above = min((one for one in known if one[0] >= self.quality), default=known[-1])
        weight = (self.quality - below[0]) / (above[0] - below[0]) if above[0] > below[0] else 0.0
        return below[1] + weight * (above[1] - below[1])


def _saved(array: "NDArray[np.uint8]", name: str, **options: Any) -> bytes:
    """Pillow's file of an image; written to a real file, as Pillow releases the interpreter lock only then."""
    from PIL import Image

    with os.fdopen(os.memfd_create("image"), "w+b") as file:
        Image.fromarray(array).save(file, name, **options)
        file.seek(0)
        return file.read()
