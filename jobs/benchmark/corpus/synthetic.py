"""Shards of synthetic images that compress like photographs, written as the job writes its own."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from hybridiff.corpus.background import BackgroundWriter
from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.layout import metadata_name, tar_name
from hybridiff.corpus.record import RunRecord
from hybridiff.corpus.shard import Result, ShardWriter
from hybridiff.images import Encoder
from hybridiff.prompts.rows import Sample

RUN_VALUES = {
    "guidance_scale": 7.0,
    "steps": 50,
    "scheduler": "synthetic",
    "model": "synthetic",
    "revision": None,
    "version": "0",
    "dtype": "float32",
    "device": "cpu",
    "group_size": 2,
    "schedule": "adaptive",
    "schedule_options": "{}",
}
BATCH = 4  # images
_OCTAVES = ((4, 60.0), (16, 30.0), (64, 15.0), (256, 6.0))  # cells across the image, and their standard deviation in brightness
_NOISE = 2.0  # standard deviation of a sensor's noise, per pixel and colour


def photograph(number: int, pixels: int) -> NDArray[np.uint8]:
    """An image (pixels, pixels, 3): smooth random fields, coarse ones stronger than fine ones, and a little noise.

    With 1024 pixels it has about 1.5 MB as PNG and 0.4 MB as JPEG of quality 95.
    """
    random = np.random.default_rng(number)
    image = np.full((pixels, pixels, 3), 128.0, np.float32)
    for cells, strength in _OCTAVES:
        if cells <= pixels:
            coarse = strength * random.standard_normal((3, cells, cells)).astype(np.float32)
            smooth = [Image.fromarray(plane).resize((pixels, pixels), Image.Resampling.BICUBIC) for plane in coarse]
            image += np.stack([np.asarray(plane) for plane in smooth], axis=-1)
    image += _NOISE * random.standard_normal(image.shape, np.float32)
    return np.clip(image, 0, 255).astype(np.uint8)


def make_results(images: Sequence[NDArray[np.uint8]], count: int) -> list[Result]:
    """Results of this number, with the images in turn."""
    first = Result(Sample("", "", None, 0, {}), images[0], None, False, 21, 5, 24, 5, 48, [0.5] * 21)
    return [
        replace(
            first,
            sample=Sample(f"photograph-{i:08d}", f"a synthetic photograph, number {i}", None, i, {}),
            image=images[i % len(images)],
        )
        for i in range(count)
    ]


def encode_and_hash(encoder: Encoder, image: NDArray[np.uint8]) -> tuple[bytes, str]:
    """An image file and its SHA-256, as ``BackgroundWriter`` computes them."""
    encoded = encoder.encode(image)
    return encoded, hashlib.sha256(encoded).hexdigest()


class SyntheticCorpus:
    """A new corpus of synthetic rows.

    Args:
        corpus: destination.
        encoder: encoder of the images.
        rows: number of rows.
        shards: number of shards.
    """

    def __init__(self, corpus: Corpus, encoder: Encoder, rows: int, shards: int = 1) -> None:
        self.corpus = corpus
        self._encoder = encoder
        corpus.start_run(RunRecord({"output": {"sidecar": "json"}}, {"rows": rows, "shards": shards, "content": "synthetic"}))
        self._open = partial(ShardWriter, corpus)

    def open(self, index: int) -> ShardWriter:
        """The writer of a shard."""
        self.corpus.check_there()
        return self._open(index, RUN_VALUES, pa.schema([]), self._encoder)

    def write(self, index: int, results: Sequence[Result]) -> None:
        """Encodes and writes a shard on background threads, as the job does."""
        writer = BackgroundWriter(self.open, self._encoder)
        try:
            for start in range(0, len(results), BATCH):
                writer.put(index, results[start : start + BATCH], start + BATCH >= len(results), {})
        except BaseException:
            writer.abort()
            raise
        writer.close()

    def write_encoded(self, index: int, results: Sequence[Result], files: Sequence[tuple[bytes, str]]) -> int:
        """Writes a shard of encoded images, the files in turn; returns the bytes of its tar and its rows.

        Args:
            index: number of the shard.
            results: rows of the shard.
            files: encoded images, each with its SHA-256.
        """
        writer = self.open(index)
        try:
            for i, result in enumerate(results):
                encoded, sha256 = files[i % len(files)]
                writer.write(result, encoded, sha256=sha256)
            marker = writer.commit({})
        except BaseException:
            writer.discard()
            raise
        return sum(marker["files"][name]["bytes"] for name in (tar_name(index), metadata_name(index)))
