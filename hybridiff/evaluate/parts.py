"""Parts: what was found in one shard or one piece of a reference, a Parquet file each, until the result is written.

A part appears whole or not at all, and its name holds the fingerprint of everything that it depends on. So ranks share the work
without talking, and a run that was killed computes what has no part yet.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hybridiff.corpus.layout import EVALUATIONS
from hybridiff.storage.folder import Folder

FEATURES = "features."  # beginning of the columns of feature vectors
REFERENCE = -1  # place of the reference among the corpora of a call
_BLOCK = 2048  # rows of features that are read at once
FLAGS = ("failed", "truncated", "black", "flat", "nan")
_TYPES: dict[str, pa.DataType] = {
    "key": pa.string(),
    "row": pa.int32(),
    **dict.fromkeys(FLAGS, pa.bool_()),
    **dict.fromkeys(("width", "height"), pa.int32()),
    "digest": pa.binary(),
    "phash": pa.uint64(),
    "thumbnail": pa.binary(),
}
EMBEDDING = "embedding"  # column of the embeddings that are kept
WORKING_COLUMNS = frozenset(_TYPES)  # of parts, which no metric or score has
BASE_COLUMNS = WORKING_COLUMNS | {"shard", "duplicate", "duplicate_of", EMBEDDING}  # names that no score of one's own may have


@dataclass(frozen=True)
class Unit:
    """What one rank computes at a time.

    Args:
        place: place of the corpus in the call, from 0; REFERENCE for images of the reference.
        index: index of the shard, or of the piece of the reference.
    """

    place: int
    index: int


def fingerprint(*identities: Any) -> str:
    """16 hexadecimal digits that differ where any of these values do."""
    return hashlib.sha256(json.dumps(identities, sort_keys=True, default=str).encode()).hexdigest()[:16]


def json_path(name: str) -> str:
    """Path of a result's figures."""
    return f"{EVALUATIONS}/{name}.json"


def parts_folder(name: str) -> str:
    """Directory of the parts of a result."""
    return f"{EVALUATIONS}/{name}.parts"


def write_part(folder: Folder, path: str, columns: Mapping[str, Sequence[Any]]) -> None:
    """Publishes a part.

    Args:
        folder: where results are.
        path: of the part in it.
        columns: values by column; of feature vectors arrays or None.
    """
    table = pa.table({name: pa.array(values, _type(name)) for name, values in columns.items()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", use_dictionary=False)
    folder.publish(path, buffer.getvalue())


def read_part(folder: Folder, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A part, or some of its columns."""
    with folder.fs.open(folder.path(path), "rb") as handle:
        return pq.read_table(handle, columns=columns)


def part_schema(folder: Folder, path: str) -> pa.Schema:
    """Columns of a part."""
    with folder.fs.open(folder.path(path), "rb") as handle:
        return pq.read_schema(handle)


def feature_blocks(folder: Folder, paths: Iterable[str], extractor: str) -> Callable[[], Iterator[NDArray[np.float32]]]:
    """The feature vectors of several parts in order: each call yields them again, (rows, width) at a time."""
    paths = list(paths)

    def blocks() -> Iterator[NDArray[np.float32]]:
        for path in paths:
            with folder.fs.open(folder.path(path), "rb") as handle:
                file = pq.ParquetFile(handle)
                known = f"{FEATURES}{extractor}" in file.schema_arrow.names  # not where all images of a part are missing
                for batch in file.iter_batches(_BLOCK, columns=[f"{FEATURES}{extractor}"]) if known else ():
                    if len(vectors := pc.drop_null(batch.column(0))):
                        yield vectors.flatten().to_numpy().reshape(len(vectors), -1)

    return blocks


def _type(name: str) -> pa.DataType:
    return pa.list_(pa.float32()) if name == EMBEDDING or name.startswith(FEATURES) else _TYPES.get(name, pa.float64())
