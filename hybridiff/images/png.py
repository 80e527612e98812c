"""PNG, several times as fast as libpng and smaller than at its fast settings: filters by whole arrays, runs by zlib-ng.

PNG (third edition), W3C Recommendation, 2025: chunks (section 5), filters (section 9).
"""

import struct

import numpy as np
from numpy.typing import NDArray
from zlib_ng import zlib_ng

_Bytes = NDArray[np.uint8]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TRUECOLOUR = struct.pack("!5B", 8, 2, 0, 0, 0)  # 8 bits each of red, green, blue; deflate, the five filters, not interlaced
_SAMPLED = 8  # one byte in so many of a row, of all three colours in turn, estimates how well a filter does


def _sub(here: _Bytes, left: _Bytes, above: _Bytes) -> _Bytes:
    return here - left


def _up(here: _Bytes, left: _Bytes, above: _Bytes) -> _Bytes:
    return here - above


def _average(here: _Bytes, left: _Bytes, above: _Bytes) -> _Bytes:
    return here - ((left & above) + ((left ^ above) >> 1))


_FILTERS = {1: _sub, 2: _up, 3: _average}  # by PNG's numbers


def encode_png(pixels: _Bytes) -> bytes:
    """A PNG file, the same bytes on every processor.

    Args:
        pixels: (height, width, 3) uint8, red, green, blue.
    """
    height, width, _ = pixels.shape
    # Of what the filters leave of a photograph no repetition but runs is worth looking for, and runs are found alike
    # for any instruction set.
    compressor = zlib_ng.compressobj(level=1, strategy=zlib_ng.Z_RLE)
    data = compressor.compress(filter_rows(pixels)) + compressor.flush()
    header = struct.pack("!2I", width, height) + _TRUECOLOUR
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def filter_rows(pixels: _Bytes) -> _Bytes:
    """Each row as differences from its neighbours: (height, 1 + 3 * width), the filter's number first.

    Of the filters sub, up and average each row has the one that leaves the smallest differences, the usual rule (section 12.7).
    """
    height, width, colours = pixels.shape
    framed = np.zeros((height + 1, (width + 1) * colours), np.uint8)  # zeros outside the image
    framed[1:, colours:] = pixels.reshape(height, -1)
    neighbours = framed[1:, colours:], framed[1:, :-colours], framed[:-1, colours:]
    sampled = [one[:, ::_SAMPLED] for one in neighbours]
    best = np.argmin([_size(differences(*sampled)) for differences in _FILTERS.values()], axis=0)
    rows = np.empty((height, 1 + width * colours), np.uint8)
    for i, (number, differences) in enumerate(_FILTERS.items()):
        mine = best == i
        rows[mine, 0], rows[mine, 1:] = number, differences(*(one[mine] for one in neighbours))
    return rows


def _size(differences: _Bytes) -> NDArray[np.int64]:
    """Sum of the absolute differences of each row, as signed bytes."""
    return np.minimum(differences, 0 - differences).sum(axis=1, dtype=np.int64)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib_ng.crc32(data, zlib_ng.crc32(kind)))
