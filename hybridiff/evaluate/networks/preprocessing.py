"""Named preprocessings: from the pixels of an image to the input of a network.

| name | what |
|---|---|
| clean-fid | each channel as float resized to 299 x 299 (Pillow, bicubic, antialiased, not rounded), then (x - 128) / 128 |
| imagenet | shorter side to 256 (bicubic), centre 224 x 224, mean and standard deviation of ImageNet |
| clip | shorter side to 224 (bicubic), centre 224 x 224, mean and standard deviation of CLIP |
| directory | as preprocessor_config.json of a directory of transformers says; without one, clip or imagenet by the model's kind |
| yahoo-open-nsfw | 256 x 256 (bilinear), through JPEG, centre 224 x 224, BGR less the means of Caffe's VGG; channels last |
| unit, symmetric | values in [0, 1] or [-1, 1] |
"""

import io
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hybridiff.errors import UsageError
from hybridiff.evaluate.networks.extractors import Extractor
from hybridiff.evaluate.shard_images import Pixels

Input = NDArray[np.float32]  # (channels, height, width), or channels last
Preprocess = Callable[[Pixels], Input]
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CAFFE_MEAN = (104.0, 117.0, 123.0)  # blue, green, red
_BICUBIC = Image.Resampling.BICUBIC


def preprocessing_of(extractor: Extractor) -> Preprocess:
    """The preprocessing of an extractor.

    Raises:
        UsageError: its directory describes one that is not known.
    """
    size, name = extractor.size, extractor.preprocessing
    if name == "directory":
        return _of_directory(Path(extractor.path))
    known: dict[str, Preprocess] = {
        "clean-fid": partial(clean_fid, size=size or 299),
        "imagenet": partial(
            cropped, shorter=round((size or 224) * 256 / 224), crop=size or 224, mean=IMAGENET_MEAN, std=IMAGENET_STD
        ),
        "clip": partial(cropped, shorter=size or 224, crop=size or 224, mean=CLIP_MEAN, std=CLIP_STD),
        "yahoo-open-nsfw": yahoo_open_nsfw,
        "unit": partial(scaled, size=size, low=0.0),
        "symmetric": partial(scaled, size=size, low=-1.0),
    }
    assert name in known, name
    return known[name]


def clean_fid(image: Pixels, size: int = 299) -> Input:
    """Resizing as "On Aliased Resizing" (arXiv 2104.11222) has it, then the scale of InceptionV3."""
    channels = [Image.fromarray(image[..., i].astype(np.float32)).resize((size, size), _BICUBIC) for i in range(3)]
    return np.asarray((np.stack([np.asarray(channel) for channel in channels]) - 128) / 128, dtype=np.float32)


def cropped(
    image: Pixels,
    shorter: int | tuple[int, int] | None,
    crop: int | tuple[int, int] | None,
    mean: Sequence[float],
    std: Sequence[float],
    resample: int = _BICUBIC,
    factor: float = 1 / 255,
) -> Input:
    """Resizes, crops the centre, scales and normalises.

    Args:
        image: pixels.
        shorter: pixels of the shorter side, or height and width; None keeps the size.
        crop: side in pixels of the square that is cut, or height and width; None cuts nothing.
        mean: of each channel, after scaling.
        std: standard deviation of each channel.
        resample: Pillow's number of the filter.
        factor: factor of pixel values.
    """
    resized = Image.fromarray(image)
    if shorter is not None:
        height, width = shorter if isinstance(shorter, tuple) else _sides(resized, shorter)
        resized = resized.resize((width, height), Image.Resampling(resample))
    pixels = np.asarray(resized)
    if crop is not None:
        pixels = _centre(pixels, *(crop if isinstance(crop, tuple) else (crop, crop)))
    means, deviations = (np.asarray(one, dtype=np.float32) for one in (mean, std))
    values = (pixels.astype(np.float32) * np.float32(factor) - means) / deviations
    return np.ascontiguousarray(values.transpose(2, 0, 1), dtype=np.float32)


def scaled(image: Pixels, size: int | None, low: float) -> Input:
    """Values from ``low`` to 1, resized to a square if ``size`` is given."""
    pixels = np.asarray(Image.fromarray(image).resize((size, size), _BICUBIC)) if size else image
    unit = pixels.astype(np.float32) / 255
    return np.ascontiguousarray((unit * (1 - low) + low).transpose(2, 0, 1))


def yahoo_open_nsfw(image: Pixels) -> Input:
    """The input of Yahoo's open_nsfw, channels last."""
    buffer = io.BytesIO()
    Image.fromarray(image).resize((256, 256), Image.Resampling.BILINEAR).save(buffer, "JPEG")
    with Image.open(buffer) as read_again:
        pixels = _centre(np.asarray(read_again.convert("RGB"), dtype=np.float32), 224, 224)
    return np.ascontiguousarray(pixels[:, :, ::-1] - np.asarray(CAFFE_MEAN, dtype=np.float32))


def _of_directory(root: Path) -> Preprocess:
    """What the files of a directory of transformers say."""
    config = json.loads((root / "config.json").read_text())
    file = root / "preprocessor_config.json"
    if not file.is_file():
        vision = config.get("vision_config") or config
        size = int(vision.get("image_size", 224))
        mean, std = (CLIP_MEAN, CLIP_STD) if "vision_config" in config else (IMAGENET_MEAN, IMAGENET_STD)
        return partial(cropped, shorter=size, crop=size, mean=mean, std=std)
    given = json.loads(file.read_text())
    given = given.get("image_processor", given)
    try:
        resizes, crops, normalises = (
            given.get(name, default) for name, default in (("do_resize", True), ("do_center_crop", False), ("do_normalize", True))
        )
        return partial(
            cropped,
            shorter=_size(given["size"]) if resizes else None,
            crop=_size(given["crop_size"]) if crops else None,
            mean=given["image_mean"] if normalises else (0.0, 0.0, 0.0),
            std=given["image_std"] if normalises else (1.0, 1.0, 1.0),
            resample=int(given.get("resample", _BICUBIC)),
            factor=float(given.get("rescale_factor", 1 / 255)) if given.get("do_rescale", True) else 1.0,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{file} describes no preprocessing that is known ({error!r}); allowed: a named one, by preprocessing"
        ) from error


def _size(given: Any) -> int | tuple[int, int]:
    """A size as preprocessor_config.json has it: of the shorter side, or of both."""
    if isinstance(given, dict):
        return int(given["shortest_edge"]) if "shortest_edge" in given else (int(given["height"]), int(given["width"]))
    return int(given)


def _sides(image: Image.Image, shorter: int) -> tuple[int, int]:
    """Height and width with a shorter side of this length."""
    width, height = image.size
    least = min(width, height)
    return int(shorter * height / least), int(shorter * width / least)


def _centre(pixels: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """The middle of an image, on black where it is smaller."""
    down, across = (max(0, side - have) for side, have in zip((height, width), pixels.shape, strict=False))
    if down or across:
        pixels = np.pad(pixels, ((down // 2, down - down // 2), (across // 2, across - across // 2), (0, 0)))
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]
