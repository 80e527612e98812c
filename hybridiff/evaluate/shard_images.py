"""Images of a corpus: a shard's rows with their image files in order, and single images of a reference by shard and key."""

import hashlib
import io
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from hybridiff.columns import IMAGE
from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.layout import metadata_name, tar_name
from hybridiff.corpus.reader import damaged, image_places, read_samples, reading
from hybridiff.images import IMAGE_FORMATS

_OPEN = 8  # tars of a reference that are open at once
Pixels = NDArray[np.uint8]  # (height, width, 3)


def decode(data: bytes) -> Pixels:
    """The pixels of an image file."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def shard_rows(corpus: Corpus, index: int, batch_size: int) -> Iterator[list[tuple[dict[str, Any], bytes | None]]]:
    """A shard's rows in order, in batches, each with its image file; None for rows that failed.

    Raises:
        ShardDamaged: rows and images do not belong together, or can't be read.
    """
    with ExitStack() as stack:
        samples = stack.enter_context(_Samples(corpus, index))
        for batch in _row_batches(corpus, index, batch_size):
            yield [(row, samples.image(row["key"], row["sha256"]) if row["status"] == "ok" else None) for row in batch]


def _row_batches(corpus: Corpus, index: int, batch_size: int) -> Iterator[list[dict[str, Any]]]:
    name = metadata_name(index)
    with reading(corpus, index, name), corpus.fs.open(corpus.path(name), "rb") as handle:
        file = pq.ParquetFile(handle)
        columns = [column for column in file.schema_arrow.names if column != IMAGE.name]
        for batch in file.iter_batches(batch_size, columns=columns):
            yield batch.to_pylist()


class _Samples:
    """The image files of a shard's tar, in the order of its rows."""

    def __init__(self, corpus: Corpus, index: int) -> None:
        self._corpus, self._index, self._name = corpus, index, tar_name(index)
        self._stack = ExitStack()

    def __enter__(self) -> "_Samples":
        with reading(self._corpus, self._index, self._name):
            handle = self._stack.enter_context(self._corpus.fs.open(self._corpus.path(self._name), "rb"))
            self._samples = read_samples(handle)
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()

    def image(self, key: str, digest: str) -> bytes:
        """The next image, which is this key's and has this SHA-256."""
        with reading(self._corpus, self._index, self._name):
            found, files = next(self._samples, (None, {}))
            encoded = next((files[ending] for ending in IMAGE_FORMATS if ending in files), None)
            if found != key or encoded is None:
                raise damaged(self._corpus, self._name, f"it holds {found!r} where the row {key!r} has its image")
            return _checked(self._corpus, self._name, key, encoded, digest)


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
            return _checked(self._corpus, name, key, handle.read(size), digest)

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


def _checked(corpus: Corpus, name: str, key: str, data: bytes, digest: str | None) -> bytes:
    """An image file that is the one of its row: a damaged one may decode to other pixels."""
    if hashlib.sha256(data).hexdigest() != digest:
        raise damaged(corpus, name, f"the image of {key!r} is not the one of its row")
    return data
