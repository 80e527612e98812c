"""What is wrong with single images, and which of them occur twice: black, flat and broken ones, exact and near duplicates."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BLACK_BELOW = 16  # of 255: an image is black if no channel of any pixel reaches it
FLAT_BELOW = 3.0  # of 255: an image is flat if the standard deviation of each channel is less
NEAR_BITS = 3  # bits of 64 in which the hashes of near duplicates may differ
NEAR_LEVELS = 4.0  # of 255: mean difference that thumbnails of near duplicates may have
HASH_SIZE = 8  # rows and columns of a hash, and of a thumbnail
_DCT_SIZE = 32
_BANDS = NEAR_BITS + 1  # hashes that differ in so few bits are equal in one of the bands
_BUCKET = 512  # images of a band's bucket that an image is compared with, so that time stays linear


@dataclass(frozen=True)
class ImageChecks:
    """What is wrong with an image; a black one is flat too.

    Args:
        black: whether there is nothing but black.
        flat: whether there is nothing but one colour.
        nan: whether values are NaN or infinite, which only floating-point images can hold.
    """

    black: bool
    flat: bool
    nan: bool


@dataclass(frozen=True)
class Fingerprint:
    """What duplicates are known by.

    Args:
        digest: hash of size and pixels, (16,) bytes.
        phash: perceptual hash of 64 bits: signs of the lowest frequencies of the brightness.
        thumbnail: (8, 8, 3) uint8, as a hash of the brightness does not see colours.
    """

    digest: bytes
    phash: int
    thumbnail: NDArray[np.uint8]


@dataclass(frozen=True)
class Duplicate:
    """That an image repeats one with a smaller key.

    Args:
        of: key of the first such image.
        exact: whether every pixel is equal.
    """

    of: str
    exact: bool


def image_checks(image: NDArray[np.generic]) -> ImageChecks:
    """Looks at an image, (height, width, 3), uint8 or floating point in [0, 1]."""
    if np.issubdtype(image.dtype, np.floating):
        if not np.isfinite(image).all():
            return ImageChecks(False, False, True)
        image = image * 255
    black = bool(image.max() < BLACK_BELOW)
    flat = black or bool((image.reshape(-1, image.shape[-1]).std(axis=0) < FLAT_BELOW).all())
    return ImageChecks(black, flat, False)


def fingerprint(image: NDArray[np.uint8]) -> Fingerprint:
    """The fingerprint of an image, (height, width, 3) uint8."""
    digest = hashlib.blake2b(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes(), digest_size=16).digest()
    thumbnail = np.asarray(Image.fromarray(image).resize((HASH_SIZE, HASH_SIZE), Image.Resampling.BOX))
    return Fingerprint(digest, phash(image), thumbnail)


def phash(image: NDArray[np.uint8]) -> int:
    """Perceptual hash of an image, (height, width, 3) uint8: 64 bits, few of which change by compression or resizing.

    A bit says whether one of the 8 x 8 lowest frequencies of the brightness (DCT of 32 x 32 pixels) is above their median.
    """
    from scipy.fft import dctn

    small = Image.fromarray(image).convert("L").resize((_DCT_SIZE, _DCT_SIZE), Image.Resampling.LANCZOS)
    low = dctn(np.asarray(small, dtype=np.float64), norm="ortho")[:HASH_SIZE, :HASH_SIZE]
    rest = low.ravel()[1:]  # the first is the mean brightness
    low[np.abs(low) < _DCT_SIZE] = 0.0  # an amplitude of one level: in flat images, rounding
    return int.from_bytes(np.packbits(low > max(0.0, float(np.median(rest)))).tobytes(), "big")


def duplicates(keys: Sequence[str], prints: Sequence[Fingerprint]) -> list[Duplicate | None]:
    """For each image the one with the smallest key that it repeats, if any.

    Exact duplicates are all found. Near ones have hashes that differ in at most 3 bits and thumbnails that differ by at most 4
    levels in the mean; each image is compared with the 512 last different ones that share 16 bits of the hash in a place.
    """
    found: list[Duplicate | None] = [None] * len(keys)
    firsts: dict[bytes, int] = {}
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index in sorted(range(len(keys)), key=keys.__getitem__):
        one = prints[index]
        first = firsts.setdefault(one.digest, index)
        if first != index:
            found[index] = Duplicate(getattr(found[first], "of", keys[first]), True)
            continue
        places = list(_places(one.phash))
        nearest = _first_near(one, [i for place in places for i in buckets[place][-_BUCKET:]], prints)
        if nearest is not None:
            found[index] = Duplicate(keys[nearest], False)
            continue
        for place in places:
            buckets[place].append(index)
    return found


def _places(value: int) -> Iterator[tuple[int, int]]:
    bits = HASH_SIZE**2 // _BANDS
    return ((band, value >> (band * bits) & ((1 << bits) - 1)) for band in range(_BANDS))


def _first_near(one: Fingerprint, candidates: list[int], prints: Sequence[Fingerprint]) -> int | None:
    """The first candidate that is a near duplicate, in the order of their keys, which is the order within a bucket."""
    near = [i for i in dict.fromkeys(candidates) if (one.phash ^ prints[i].phash).bit_count() <= NEAR_BITS]
    if not near:
        return None
    thumbnails = np.stack([prints[i].thumbnail for i in near]).astype(np.int16)
    differences = np.abs(thumbnails - one.thumbnail.astype(np.int16)).mean(axis=(1, 2, 3))
    alike = [i for i, difference in zip(near, differences, strict=True) if difference <= NEAR_LEVELS]
    return alike[0] if alike else None
