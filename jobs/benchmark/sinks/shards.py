"""Shards of made-up results, written as the job writes them."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hybridiff.corpus.background import BackgroundWriter
from hybridiff.corpus.columns import RowSettings
from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.names import metadata_name, tar_name
from hybridiff.corpus.record import RunRecord
from hybridiff.corpus.results import Result
from hybridiff.corpus.shard import ShardWriter
from hybridiff.prompts.rows import Sample

SETTINGS = RowSettings(7.0, 50, "made up", "made up", None, "0", "float32", "cpu", 2, "adaptive", "{}")
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


class Shards:
    """A new corpus of made-up rows.

    Args:
        corpus: Where it goes.
        image_format: Of the images.
        quality: Of jpg and webp.
        rows: In all.
        shards: In all.
    """

    def __init__(self, corpus: Corpus, image_format: str, quality: int, rows: int, shards: int = 1) -> None:
        self.corpus = corpus
        self._format, self._quality = image_format, quality
        corpus.start_run(RunRecord({"output": {"sidecar": "json"}}, {"rows": rows, "shards": shards, "content": "made up"}))
        self._open = partial(ShardWriter, corpus)

    def open(self, index: int) -> ShardWriter:
        """The writer of a shard."""
        self.corpus.check_there()
        return self._open(index, SETTINGS, pa.schema([]), self._format, self._quality)

    def write(self, index: int, results: Sequence[Result]) -> None:
        """Encodes and writes a shard on background threads, as the job does."""
        writer = BackgroundWriter(self.open, self._format, self._quality)
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
