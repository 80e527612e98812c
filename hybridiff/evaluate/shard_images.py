"""Images of a corpus: a shard's rows with their image files in order, and single images of a reference by shard and key."""

import io
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from typing import IO, Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.layout import metadata_name, tar_name
from hybridiff.corpus.reader import damaged, image_places, reading, row_image, shard_samples
from hybridiff.images import IMAGE_FORMATS

_OPEN = 8  # tars of a reference that are open at once
Pixels = NDArray[np.uint8]  # (height, width, 3)


def decode(data: bytes) -> Pixels:
    """The pixels of an image file, the first of several; without transparency, and not turned as EXIF says."""
    with Image.open(io.BytesIO(data)) as image:
        if image.mode.startswith("I;16"):  # Pillow would cut values off at 255
            return np.asarray(Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB"))
        return np.asarray(image.convert("RGB"))


def shard_rows(corpus: Corpus, index: int, batch_size: int) -> Iterator[list[tuple[dict[str, Any], bytes | None]]]:
    """A shard's rows in order, in batches, each with its image file; None for rows that failed.

    Raises:
        ShardDamaged: rows and images do not belong together, or can't be read.
    """
    with closing(shard_samples(corpus, index)) as samples:
        while some := list(islice(samples, batch_size)):
            yield [(row, _image(corpus, index, row, files) if files else None) for row, files in some]


def _image(corpus: Corpus, index: int, row: dict[str, Any], files: dict[str, bytes]) -> bytes:
    encoded = next((files[ending] for ending in IMAGE_FORMATS if ending in files), None)
    return row_image(corpus, index, row["key"], encoded, row["sha256"])


class ImagesByKey:
    """Single images of a corpus; places in tars and digests are read once, and a few tars stay open.

    Args:
        corpus: the corpus.
    """

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._places: dict[int, dict[str, tuple[int, int]]] = {}
        self._digests: dict[int, dict[str, str]] = {}
        self._handles: OrderedDict[int, IO[bytes]] = OrderedDict()

    def read(self, shard: int, key: str) -> bytes:
        """The image file of a row.

        Raises:
            ShardDamaged: the tar does not hold it, or can't be read; or it is not the row's.
        """
        name, digest = tar_name(shard), self._digest(shard, key)
        with reading(self._corpus, shard, name):
            handle = self._open(shard, name)
            if shard not in self._places:
                self._places[shard] = image_places(handle)
            if key not in self._places[shard]:
                raise damaged(self._corpus, name, f"it holds no image of {key!r}, which is a row")
            offset, size = self._places[shard][key]
            handle.seek(offset)
            return row_image(self._corpus, shard, key, handle.read(size), digest)

    def _digest(self, shard: int, key: str) -> str | None:
        if shard not in self._digests:
            name = metadata_name(shard)
            with reading(self._corpus, shard, name), self._corpus.fs.open(self._corpus.path(name), "rb") as handle:
                table = pq.read_table(handle, columns=["key", "sha256"])
            self._digests[shard] = dict(zip(table["key"].to_pylist(), table["sha256"].to_pylist(), strict=True))
        return self._digests[shard].get(key)

    def close(self) -> None:
        """Closes what is open."""
        while self._handles:
            self._handles.popitem()[1].close()

    def _open(self, shard: int, name: str) -> IO[bytes]:
        if shard in self._handles:
            self._handles.move_to_end(shard)
            return self._handles[shard]
        if len(self._handles) == _OPEN:
            self._handles.popitem(last=False)[1].close()
        self._handles[shard] = self._corpus.fs.open(self._corpus.path(name), "rb")
        return self._handles[shard]
