"""Copies of text formats in Parquet, made in one streaming pass over the file."""

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from hybridiff.config import DataConfig
from hybridiff.prompts.inference import CellKind, JsonKind
from hybridiff.prompts.parts import LINE, USER
from hybridiff.prompts.rows import check_keys, key_column, own_rows
from hybridiff.prompts.tables import CELL_FORMATS, Source, Table, open_source
from hybridiff.prompts.text import read_text

COLUMNS = pa.schema(
    [
        ("key", pa.string()),
        ("prompt", pa.string()),
        ("negative_prompt", pa.string()),
        ("seed", pa.int64()),
        (LINE, pa.int64()),
        (USER, pa.string()),
    ]
)
COPIED = DataConfig(prompts="copy", prompt_column="prompt", key_column="key")  # names of a copy's columns


@dataclass(frozen=True)
class Copied:
    """What a copy was made of.

    Args:
        rows: In all.
        sha256: Of the file's bytes, decompressed (hex).
        kinds: Types of the user's columns.
        uncertain: Those columns of which single values may not fit.
        makes_keys: Whether the file brought no keys.
    """

    rows: int
    sha256: str
    kinds: dict[str, pa.DataType]
    uncertain: tuple[str, ...]
    makes_keys: bool


def copy_text(
    source: Source, data: DataConfig, slug: str, images: int, sink: IO[bytes], progress: Callable[[int], None]
) -> Copied:
    """Writes a text format's checked rows to ``sink`` as Parquet; ``progress`` is told the rows so far.

    Raises:
        UsageError: Anything about the table is not allowed; names the file and line.
    """
    copy = _Copy(source, data, slug, images)
    with open_source(source) as file, pq.ParquetWriter(sink, COLUMNS) as writer:
        hashing = _Hashing(file)
        for table in read_text(source, data, io.BufferedReader(hashing, io.DEFAULT_BUFFER_SIZE * 16)):
            if table.numbers:
                writer.write_table(copy.add(table))
                progress(copy.rows)
    uncertain = tuple(name for name, kind in copy.kinds.items() if not kind.certain())
    kinds = {name: kind.kind for name, kind in copy.kinds.items()}
    return Copied(copy.rows, hashing.sha256.hexdigest(), kinds, uncertain, copy.key is None)


class _Copy:
    def __init__(self, source: Source, data: DataConfig, slug: str, images: int) -> None:
        self.source, self.data, self.slug, self.images = source, data, slug, images
        self.rows = 0
        self.key: str | None = None
        self.kinds: dict[str, CellKind | JsonKind] = {}
        self._first: Table | None = None

    def add(self, table: Table) -> pa.Table:
        """A piece of the file as the copy holds it."""
        key = key_column(table.columns, self.data)
        if self._first is None:
            self._first, self.key = Table(self.source, {}, table.numbers[:1]), key
        elif key != self.key:  # keys that begin in the middle of the file: the first row lacks one
            check_keys(Table(self.source, {str(key): [None]}, self._first.numbers), str(key), self.images)
        own = own_rows(table, self.data, self.slug, self.images, self.rows)
        self.rows += own.num_rows
        taken = {self.data.prompt_column, key, "negative_prompt", "seed"}
        user = {name: values for name, values in table.columns.items() if name not in taken}
        for name, values in user.items():
            kind = self.kinds.setdefault(name, CellKind() if self.source.suffix in CELL_FORMATS else JsonKind())
            kind.add(values)
        columns = [*own.columns, pa.array(table.numbers, pa.int64()), pa.array(_objects(user, own.num_rows), pa.string())]
        return pa.Table.from_arrays(columns, schema=COLUMNS)


def _objects(user: dict[str, Any], count: int) -> Iterator[str]:
    for row in range(count):
        yield json.dumps({name: values[row] for name, values in user.items() if values[row] is not None})


class _Hashing(io.RawIOBase):
    """Hashes what passes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        self.sha256.update(data)
        buffer[: len(data)] = data
        return len(data)

    def tell(self) -> int:
        return self._file.tell()
