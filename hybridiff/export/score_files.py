"""The files in which evaluations have left scores: Parquet, a row for each key."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from hybridiff.corpus.layout import METADATA
from hybridiff.errors import UsageError, access_error
from hybridiff.secrets import one_line
from hybridiff.storage.folder import Folder

_NOT_SCORES = frozenset({"key", "shard"})
_BATCH = 65_536  # rows


@dataclass(frozen=True)
class ScoreFile:
    """The scores of an evaluation: a Parquet file with a row for each key.

    Args:
        folder: where it is.
        name: its name there.
    """

    folder: Folder
    name: str

    def __str__(self) -> str:
        return f"{self.name} in {self.folder.url}"

    def types(self) -> dict[str, pa.DataType]:
        """The types of its scores by name.

        Raises:
            UsageError: it can't be read, or has no column ``key``.
        """
        with _unreadable(self), self.folder.fs.open(self.folder.path(self.name), "rb") as handle:
            schema = pq.read_schema(handle)
        if "key" not in schema.names:
            raise UsageError(f"{self} has no column 'key', so it is no evaluation; it has {', '.join(schema.names)}")
        return {field.name: field.type for field in schema if field.name not in _NOT_SCORES}

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Its rows, with these columns."""
        with _unreadable(self), self.folder.fs.open(self.folder.path(self.name), "rb") as handle:
            yield from pq.ParquetFile(handle).iter_batches(_BATCH, columns=list(dict.fromkeys(["key", *columns])))


def find_scores(folder: Folder, directory: str) -> dict[str, ScoreFile]:
    """The evaluations in a directory of a folder, by name."""
    names = [name for name in folder.names(directory) if name.endswith(".parquet")]
    if f"{METADATA}.parquet" in names:
        raise UsageError(f"{directory} in {folder.url} holds an evaluation called {METADATA}; allowed: any other name")
    files = {name.removesuffix(".parquet"): f"{directory}/{name}" if directory else name for name in names}
    for file in files.values():
        folder.check_regular(file)
    return {name: ScoreFile(folder, file) for name, file in files.items()}


@contextmanager
def _unreadable(file: ScoreFile) -> Iterator[None]:
    try:
        yield
    except (UsageError, AssertionError):
        raise
    except Exception as error:  # of the storage, or of the reader of a damaged file, whose errors of the system have no number
        message, damaged = f"{file} can't be read ({one_line(error)})", type(error) is OSError and error.errno is None
        raise (UsageError(message) if damaged else access_error(message, error)) from error
