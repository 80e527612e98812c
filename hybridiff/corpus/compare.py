"""One row of a corpus, found by its key and compared with its regenerated image."""

import hashlib
import io
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.layout import metadata_name, tar_name
from hybridiff.corpus.reader import ShardDamaged, damaged, read_samples, reading
from hybridiff.corpus.shard import Result
from hybridiff.errors import UsageError
from hybridiff.images import Encoder

_READ = 64  # Parquet files that are searched at a time
_COLUMNS = ("key", "status", "error", "file", "sha256", "device", "version")


@dataclass(frozen=True)
class Comparison:
    """Whether a regenerated row equals the one in the corpus, and the line that says so."""

    equal: bool
    text: str


def find_row(corpus: Corpus, key: str) -> tuple[int, dict[str, Any]]:
    """The shard and the columns of a row.

    Raises:
        UsageError: no committed shard has a row of this key.
        ShardDamaged: the row may be in a shard whose rows can't be read.
    """
    unread: list[ShardDamaged] = []
    indices = sorted(corpus.committed())
    with ThreadPoolExecutor() as readers:
        for start in range(0, len(indices), _READ):
            part = indices[start : start + _READ]
            for index, rows in zip(part, readers.map(partial(_rows, corpus, key), part), strict=True):
                if isinstance(rows, ShardDamaged):
                    unread.append(rows)
                elif rows:
                    return index, rows[0]
    if unread:
        raise unread[0]
    raise UsageError(f"only is {key!r}; allowed: a key of the {len(indices)} shards that {corpus.url} holds")


def compare(corpus: Corpus, shard: int, row: dict[str, Any], result: Result, encoder: Encoder) -> Comparison:
    """Compares a regenerated row with the one in the corpus: by SHA-256, else by PSNR.

    Args:
        corpus: the corpus.
        shard: index of the row's shard.
        row: the row as ``find_row`` returns it.
        result: the regenerated row.
        encoder: the encoder of the corpus.

    Raises:
        ShardDamaged: the stored image can't be read.
    """
    if result.image is None or row["status"] != "ok":
        there, here = row["error"] or "an image", result.error or "an image"
        return Comparison(there == here, f"{there} there, {here} now")
    encoded = encoder.encode(result.image)
    if hashlib.sha256(encoded).hexdigest() == row["sha256"]:
        return Comparison(True, f"the same bytes (SHA-256 {row['sha256']})")
    stored = _stored(corpus, shard, row["key"], encoder.image_format)
    level = psnr(np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")), np.asarray(stored))
    text = f"other bytes than on {row['device']} by version {row['version']}, PSNR {level:.1f} dB"
    return Comparison(False, text)


def psnr(one: NDArray[np.uint8], two: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of two images in dB: infinite if they are equal, minus infinity if their sizes differ."""
    if one.shape != two.shape:
        return -math.inf
    error = float(np.square(one.astype(np.float64) - two).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def _rows(corpus: Corpus, key: str, index: int) -> list[dict[str, Any]] | ShardDamaged:
    name = metadata_name(index)
    try:
        with reading(corpus, index, name), corpus.fs.open(corpus.path(name), "rb") as handle:
            rows: list[dict[str, Any]] = pq.read_table(handle, columns=list(_COLUMNS), filters=[("key", "=", key)]).to_pylist()
            return rows
    except ShardDamaged as damage:
        return damage


def _stored(corpus: Corpus, shard: int, key: str, image_format: str) -> Image.Image:
    name = tar_name(shard)
    with reading(corpus, shard, name), corpus.fs.open(corpus.path(name), "rb") as handle:
        files = next((files for found, files in read_samples(handle) if found == key), {})
        if image_format not in files:
            raise damaged(corpus, name, f"it holds no image of {key!r}, which is a row")
        return Image.open(io.BytesIO(files[image_format])).convert("RGB")
