"""Tables of any format made one: a single pass over all sources gives checked rows of one schema, in bounded memory.

Types of JSON columns are known only after the last row, so rows wait until then, on disk if they are many (``spooled``); those of
Parquet files are in their footers, and rows go straight on.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from hybridiff.columns import PROMPT_COLUMNS
from hybridiff.config import DataConfig
from hybridiff.errors import UsageError
from hybridiff.prompts.arrow_formats import parquet_schema, read_own, read_parquet
from hybridiff.prompts.column_types import ColumnTypes, converted, stored_name
from hybridiff.prompts.content import ContentDigest
from hybridiff.prompts.names import check_columns, key_column, settings_among, shown, user_columns
from hybridiff.prompts.rows import file_slugs, is_empty, own_columns
from hybridiff.prompts.sources import Piece, Source
from hybridiff.prompts.text_formats import read_text

OWN_SCHEMA = pa.schema([(name, pa.int64() if name == "seed" else pa.string()) for name in (*PROMPT_COLUMNS, "error")])
HELD_KEYS = 1 << 24  # hashes of keys in memory; more are on disk and looked through in several passes
_MOST_REPEATED = 1 << 16  # hashes of keys that are looked for when some are found twice
Hashes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Request:
    """What is read.

    Args:
        sources: files and own sources, in order
        data: names of columns, and how files are read
        images: images per row
        negative_prompts: what is allowed in place of rows' negative prompts where they change nothing
    """

    sources: Sequence[Source]
    data: DataConfig
    images: int
    negative_prompts: str | None = None

    @property
    def slugs(self) -> list[str]:
        """For each source, the first part of its rows' keys, if they bring none."""
        return file_slugs([source.stem for source in self.sources])

    def pieces(self) -> Iterator[tuple[Piece, list[pa.ChunkedArray]]]:
        """All rows in order, and their checked key, prompt, negative_prompt and seed.

        Raises:
            UsageError: anything about the rows is not allowed; names the file and line.
        """
        total = 0
        for source, slug in zip(self.sources, self.slugs, strict=True):
            count, first = 0, None
            for piece in _read(source, self.data):
                check_columns(source.name, piece.columns, self.data)
                own = own_columns(piece, self.data, slug, self.images, count, self.negative_prompts)
                first = first or piece
                without = [one for one in (first, piece) if key_column(one.columns, self.data) is None]
                if len(without) == 1:  # a column of keys that begins or ends in the middle
                    raise UsageError(f"{without[0].place(0)}: key is None; allowed: text or an integer")
                count += len(piece.numbers)
                if total + count > self.data.max_rows:
                    raise UsageError(f"{source.name}: brings the rows to more than {self.data.max_rows}; see data.max_rows")
                yield piece, own
            total += count
        if not total:
            raise UsageError(f"{', '.join(source.name for source in self.sources)}: no prompts; allowed: one row or more")


class Normalisation:
    """One pass over all sources: ``rows`` first, then ``finished``.

    Args:
        request: what is read

    Attributes:
        typed: whether the types of all columns are known before the first row
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._types = ColumnTypes()
        self._digest = ContentDigest()
        self._empty_prompts = self._count = 0
        self._first_key = ""
        self.typed = all(source.suffix in (".parquet", ".txt") for source in request.sources)
        if self.typed:
            for source in request.sources:
                self._declare(source)

    def rows(self) -> Iterator[pa.Table]:
        """All rows, checked; the user's columns as they were read.

        Raises:
            UsageError: anything about the rows is not allowed; names the file and line.
        """
        data = self._request.data
        with tempfile.SpooledTemporaryFile(8 * HELD_KEYS) as hashes:
            for piece, own in self._request.pieces():
                hashes.write(hash_keys(own[0]).tobytes())
                if data.empty_prompts == "allow":
                    self._empty_prompts += pc.sum(is_empty(own[1])).as_py()
                columns = dict(zip(PROMPT_COLUMNS, own, strict=True))
                errors = [piece.error(row) for row in range(len(piece.numbers))] if piece.errors else None
                columns["error"] = pa.array(errors, pa.string()) if errors else pa.nulls(len(piece.numbers), pa.string())
                users = {stored_name(name): self._types.add(piece, name) for name in user_columns(piece.columns, data)}
                yield pa.Table.from_pydict(columns | users)
            self._refuse_duplicates(repeated_hashes(hashes)[:_MOST_REPEATED])

    def schema(self) -> pa.Schema:
        """Names and types of the normalised columns; final once all rows were read, or at once where they are ``typed``.

        Raises:
            UsageError: a name can't be stored; names the file.
        """
        return pa.schema([*OWN_SCHEMA, *self._types.schema()])

    def finished(self, rows: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Rows as ``rows`` gave them in the schema of all."""
        schema = self.schema()
        for given in rows:
            columns = [
                converted(given[name], kind) if name in given.column_names else pa.nulls(given.num_rows, kind)
                for name, kind in zip(schema.names, schema.types, strict=True)
            ]
            table = pa.Table.from_arrays(columns, schema=schema)
            self._first_key = self._first_key or table["key"][0].as_py()
            self._count += table.num_rows
            self._digest.add(table)
            yield table

    def metadata(self) -> dict[str, Any]:
        """What is known of the finished table beside its rows; see ``PromptTable``."""
        schema = self.schema()
        content = self._digest.finish(schema)
        columns = {field.name: str(field.type) for field in list(schema)[len(OWN_SCHEMA) :]}
        summary = {"rows": self._count, "first_key": self._first_key, "columns": columns} | self._digest.summary()
        settings = settings_among(self._types.names)
        return {"content": content, "summary": summary, "settings": settings, "empty_prompts": self._empty_prompts}

    def _declare(self, source: Source) -> None:
        data = self._request.data
        schema, rows = parquet_schema(source, data) if source.suffix == ".parquet" else (pa.schema([]), 0)
        if rows:
            check_columns(source.name, schema.names, data)
            for name in user_columns(schema.names, data):
                self._types.declare(source.name, name, schema.field(name).type)

    def _refuse_duplicates(self, repeated: Hashes) -> None:
        """Reads again the keys whose hashes are ``repeated``: different keys may have equal ones."""
        places: dict[str, str] = {}
        for piece, own in self._request.pieces() if len(repeated) else ():
            keys = own[0].combine_chunks()
            for row in map(int, np.flatnonzero(np.isin(hash_keys(own[0]), repeated))):
                key, place = keys[row].as_py(), piece.place(row)
                if key in places:
                    raise UsageError(f"{place}: key {shown(key)} is also at {places[key]}; allowed: unique keys")
                places[key] = place


def hash_keys(keys: pa.ChunkedArray) -> Hashes:
    """64 bits for each key; equal keys have equal ones in this process."""
    return np.fromiter(map(hash, keys.to_numpy(zero_copy_only=False)), np.int64, len(keys))


def repeated_hashes(file: IO[bytes]) -> Hashes:
    """The hashes that are more than once in a file of them; about ``HELD_KEYS`` are looked at together."""
    passes, found = 1 + file.tell() // (8 * HELD_KEYS), []
    for rest in range(passes):  # equal hashes have the same rest
        file.seek(0)
        parts = (np.frombuffer(data, np.int64) for data in iter(partial(file.read, 1 << 23), b""))
        hashes = np.sort(np.concatenate([part[part % passes == rest] for part in parts]))
        found.append(np.unique(hashes[1:][hashes[1:] == hashes[:-1]]))
    return np.concatenate(found)


def spooled(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Tables of any schemas, kept in a file without a name until the last has come."""
    file = tempfile.TemporaryFile()  # noqa: SIM115
    for table in tables:
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.ipc.new_stream(pa.PythonFile(file, "w"), table.schema, options=options) as stream:
            stream.write_table(table)
    return _read_spool(file, file.tell())


def _read_spool(file: Any, end: int) -> Iterator[pa.Table]:
    with file:
        file.seek(0)
        while file.tell() < end:
            with pa.ipc.open_stream(pa.PythonFile(file, "r")) as stream:
                yield stream.read_all()


def _read(source: Source, data: DataConfig) -> Iterator[Piece]:
    if source.rows is not None:
        return read_own(source, data)
    return read_parquet(source, data) if source.suffix == ".parquet" else read_text(source, data)
