"""Shards of made-up results, written as the job writes them."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

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
    "scheduler": "made up",
    "model": "made up",
    "revision": None,
    "version": "0",
    "dtype": "float32",
    "device": "cpu",
    "group_size": 2,
    "schedule": "adaptive",
    "schedule_options": "{}",
}
BATCH = 4  # images


def make_results(pictures: Sequence[NDArray[np.uint8]], count: int) -> list[Result]:
    """So many results, their pictures in turn."""
    first = Result(Sample("", "", None, 0, {}), pictures[0], None, False, 21, 5, 24, 5, 48, [0.5] * 21)
    return [
        replace(
            first,
            sample=Sample(f"photograph-{i:08d}", f"a made-up photograph, number {i}", None, i, {}),
            image=pictures[i % len(pictures)],
        )
        for i in range(count)
    ]


def encode_and_hash(encoder: Encoder, picture: NDArray[np.uint8]) -> tuple[bytes, str]:
    """An image file and its SHA-256, as ``BackgroundWriter`` makes them."""
    encoded = encoder.encode(picture)
    return encoded, hashlib.sha256(encoded).hexdigest()


class Shards:
    """A new corpus of made-up rows.

    Args:
        corpus: Where it goes.
        encoder: the encoder of the images.
        rows: In all.
        shards: In all.
    """

    def __init__(self, corpus: Corpus, encoder: Encoder, rows: int, shards: int = 1) -> None:
        self.corpus = corpus
        self._encoder = encoder
        corpus.start_run(RunRecord({"output": {"sidecar": "json"}}, {"rows": rows, "shards": shards, "content": "made up"}))
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
        """Writes a shard of images that are encoded already, its files in turn; returns the bytes of its tar and its rows.

        Args:
            index: Of the shard.
            results: Its rows.
            files: Each with its SHA-256.
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
