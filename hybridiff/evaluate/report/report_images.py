"""Images of the report: the pairs that differ most, small enough for one page."""

import base64
import io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.layout import MARKER, metadata_name
from hybridiff.evaluate.shard_images import ImagesByKey, decode

MOST_PAIRS = 12
LONGEST_SIDE = 384  # pixels of a shown image
_SMALL_SIDE = 128  # images of fewer pixels are shown with sharp pixels
_GAINS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Pair:
    """A row beside its reference.

    Args:
        key: key of the row.
        prompt: its prompt.
        figures: its metrics of pairs.
        image: the image as a data url; ``reference`` and ``difference`` likewise.
        gain: factor by which the difference is brightened.
        small: whether the image has few pixels.
    """

    key: str
    prompt: str
    figures: dict[str, float]
    image: str
    reference: str
    difference: str
    gain: int
    small: bool


def worst_pairs(corpus: Corpus, reference: Corpus, rows: pa.Table) -> list[Pair]:
    """The pairs with the lowest PSNR, which are equal in key; none where a corpus can't be read any more.

    Args:
        corpus: the corpus.
        reference: what it was compared with.
        rows: rows of the result.
    """
    if "psnr" not in rows.column_names:
        return []
    known = rows.filter(pc.is_finite(rows["psnr"])).sort_by([("psnr", "ascending"), ("key", "ascending")]).slice(0, MOST_PAIRS)
    names = [name for name in ("psnr", "ssim", "lpips") if name in known.column_names]
    mine, theirs = ImagesByKey(corpus), ImagesByKey(reference)
    found = []
    try:
        places = _shards(reference, known["key"])
        for row in known.select(["key", "shard", *names]).to_pylist():
            images = decode(mine.read(row["shard"], row["key"])), decode(theirs.read(places[row["key"]], row["key"]))
            figures = {name: row[name] for name in names if row[name] is not None}
            found.append(_pair(row["key"], _prompt(corpus, row["shard"], row["key"]), figures, *images))
    except Exception:  # a page without these images is better than none; storage clients raise types of their own
        return found
    finally:
        mine.close()
        theirs.close()
    return found


def _pair(key: str, prompt: str, figures: dict[str, float], one: NDArray[np.uint8], two: NDArray[np.uint8]) -> Pair:
    difference = np.abs(one.astype(np.int16) - two)
    typical = max(1.0, float(np.quantile(difference, 0.99)))
    gain = max(gain for gain in _GAINS if gain == 1 or gain * typical <= 255)
    bright = np.minimum(255, difference * gain).astype(np.uint8)
    return Pair(key, prompt, figures, _url(one), _url(two), _url(bright), gain, max(one.shape[:2]) < _SMALL_SIDE)


def _url(pixels: NDArray[np.uint8]) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    file = io.BytesIO()
    image.save(file, "WEBP", quality=90, lossless=max(image.size) < _SMALL_SIDE)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def _shards(corpus: Corpus, keys: pa.ChunkedArray) -> dict[str, int]:
    """The shard of each of these keys."""
    wanted = keys.combine_chunks()
    found: dict[str, int] = {}
    for name in corpus.names("commits"):
        if match := MARKER.fullmatch(name):
            with corpus.fs.open(corpus.path(metadata_name(int(match[1]))), "rb") as handle:
                there = pq.read_table(handle, columns=["key"])["key"]
            found |= dict.fromkeys(there.filter(pc.is_in(there, wanted)).to_pylist(), int(match[1]))
        if len(found) == len(wanted):
            break
    return found


def _prompt(corpus: Corpus, shard: int, key: str) -> str:
    with corpus.fs.open(corpus.path(metadata_name(shard)), "rb") as handle:
        rows = pq.read_table(handle, columns=["prompt"], filters=[("key", "=", key)]).to_pylist()
    return rows[0]["prompt"] if rows else ""
