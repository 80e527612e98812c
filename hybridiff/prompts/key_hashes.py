"""Hashes of keys, to find duplicates among many: eight bytes of memory each, and beyond some number of keys on disk."""

import tempfile
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Hashes = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]

HELD_KEYS = 1 << 24  # more are put into files, one for each value of the upper bits
BUCKETS = 64
_ODD = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)
_MASKS = np.array([(1 << (8 * size)) - 1 for size in range(9)], np.uint64)


def hash_keys(keys: pa.StringArray) -> Hashes:
    """64 bits for each key; equal keys have equal ones."""
    offsets, data = _buffers(keys)
    lengths = np.diff(offsets)
    hashes = lengths.astype(np.uint64) * _ODD
    for live, words in _words(data[offsets[0] : offsets[-1]], offsets[:-1] - offsets[0], lengths):
        mixed = (hashes[live] ^ words) * _MIX
        hashes[live] = (mixed ^ (mixed >> np.uint64(29))) * _ODD
    return hashes ^ (hashes >> np.uint64(32))


def _words(data: npt.NDArray[np.uint8], starts: Positions, lengths: Positions) -> Iterator[tuple[Any, Hashes]]:
    """Eight bytes of each key after the other, filled up with zeros, and of which keys."""
    shortest, longest = (int(lengths.min()), int(lengths.max())) if len(lengths) else (0, 0)
    if shortest == longest:  # as numbers with leading zeros are
        filled = np.zeros((len(lengths), -(-longest // 8) * 8), np.uint8)
        filled[:, :longest] = data.reshape(len(lengths), longest)
        for column in filled.view("<u8").T:
            yield slice(None), column
        return
    padded = np.concatenate([data, np.zeros(8, np.uint8)])
    anywhere: Hashes = np.ndarray(len(padded) - 7, np.dtype("<u8"), padded, strides=(1,))  # a word at each byte
    for position in range(0, longest, 8):
        live = slice(None) if position < shortest else np.flatnonzero(lengths > position)
        words = anywhere[starts[live] + position]
        yield live, words if position + 8 <= shortest else words & _MASKS[np.minimum(lengths[live] - position, 8)]


class KeyHashes:
    """Hashes of all keys, in any order. It may hold files without names: close it.

    Args:
        held: number of hashes kept in memory
    """

    def __init__(self, held: int = HELD_KEYS) -> None:
        self._limit = held
        self._pieces: list[Hashes] = []
        self._count = 0
        self._files: list[IO[bytes]] = []

    def close(self) -> None:
        """Removes the files."""
        for file in self._files:
            file.close()

    def add(self, hashes: Hashes) -> None:
        """Adds some more."""
        self._pieces.append(hashes)
        self._count += len(hashes)
        if self._count > self._limit:
            self._spill()

    def repeated(self) -> Hashes:
        """The values that were added more than once, sorted; none means that all keys are unique."""
        found = [np.zeros(0, np.uint64)]
        for hashes in self._buckets():
            hashes.sort()
            found.append(np.unique(hashes[1:][hashes[1:] == hashes[:-1]]))
        return np.concatenate(found)

    def _buckets(self) -> Iterator[Hashes]:
        if not self._files:
            pieces, self._pieces = self._pieces, []
            yield np.concatenate([np.zeros(0, np.uint64), *pieces])
            return
        self._spill()
        for file in self._files:
            file.seek(0)
            yield np.frombuffer(bytearray(file.read()), np.uint64)

    def _spill(self) -> None:
        self._files = self._files or [tempfile.TemporaryFile() for _ in range(BUCKETS)]  # noqa: SIM115
        for hashes in self._pieces:
            ordered = np.sort(hashes)
            edges = np.searchsorted(ordered >> np.uint64(58), np.arange(BUCKETS + 1, dtype=np.uint64))
            for file, start, stop in zip(self._files, edges[:-1], edges[1:], strict=True):
                file.write(ordered[start:stop].tobytes())
        self._pieces, self._count = [], 0


def _buffers(keys: pa.StringArray) -> tuple[Positions, npt.NDArray[np.uint8]]:
    _, offsets, data = keys.buffers()
    bounds = np.frombuffer(offsets, np.int32)[keys.offset : keys.offset + len(keys) + 1].astype(np.int64)
    return bounds, np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
