"""Prompt tables: files of any supported format, local or remote, to columns."""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.utils import infer_compression

from hybridiff.config import DataConfig, UsageError, redact

FORMATS = (".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".parquet")
CELL_FORMATS = (".csv", ".tsv")


@dataclass(frozen=True)
class Source:
    """A file to read: its name for messages (without secrets), where it is, its format's suffix and its bare stem."""

    name: str
    files: fsspec.AbstractFileSystem
    path: str
    suffix: str
    compression: str | None
    stem: str


@dataclass(frozen=True)
class Table:
    """A file's rows as read, untyped yet: columns of Python values (cells: text or None) or Arrow columns (Parquet).

    ``numbers`` holds each row's line or row number in the file, from 1.
    """

    source: Source
    columns: dict[str, list[Any] | pa.ChunkedArray]
    numbers: Sequence[int]

    def place(self, row: int) -> str:
        """File and line (Parquet: row) of row ``row``, counted from 0, for messages."""
        unit = "row" if self.source.suffix == ".parquet" else "line"
        return f"{self.source.name}, {unit} {self.numbers[row]}"

    def values(self, column: str) -> list[Any]:
        """A column as Python values."""
        values = self.columns[column]
        return values if isinstance(values, list) else values.to_pylist()


def find_sources(given: Sequence[str]) -> list[Source]:
    """The files behind paths, urls and globs, in the order given; a glob's are sorted.

    Raises:
        UsageError: A glob matches nothing, a format is unknown, or a file system can't be reached.
    """
    return [source for pattern in given for source in _expand(pattern)]


def read_table(source: Source, data: DataConfig) -> Table:
    """Reads one file; plain text becomes the prompt column.

    Raises:
        UsageError: The file is missing, unreadable or not what its suffix says; names the file and line.
    """
    with _reported(source.name, "cannot be read"), source.files.open(source.path, "rb", compression=source.compression) as file:
        content = file.read()
    if source.suffix == ".parquet":
        return _read_parquet(source, content)
    if source.suffix in CELL_FORMATS:
        return _read_cells(source, content)
    if source.suffix == ".txt":
        lines = [(number, line.rstrip("\r\n")) for number, line in _lines(source, content) if line.strip()]
        return Table(source, {data.prompt_column: [line for _, line in lines]}, [number for number, _ in lines])
    return _read_json(source, content)


@contextmanager
def _reported(name: str, trouble: str) -> Iterator[None]:
    """Turns whatever a file system or parser raises (each plug-in has its own kinds) into a ``UsageError`` about ``name``."""
    try:
        yield
    except FileNotFoundError as error:
        raise UsageError(f"{name}: no such file") from error
    except Exception as error:
        reason = redact(" ".join(str(error).split())) or type(error).__name__
        raise UsageError(f"{name}: {trouble}: {reason}") from error


def _expand(given: str) -> list[Source]:
    name = redact(given)
    with _reported(name, "cannot be found"):
        files, path = fsspec.core.url_to_fs(given)
        # A name with these characters may also be a plain file's, or a url's query.
        is_glob = any(character in path for character in "*?[") and not files.exists(path)
        matches = sorted(map(str, files.glob(path))) if is_glob else []
    if not is_glob:
        return [_source(name, files, path)]
    if not matches:
        raise UsageError(f"{name}: matches no file")
    is_local = "file" in (files.protocol if isinstance(files.protocol, tuple) else (files.protocol,))
    return [_source(match if is_local else redact(files.unstrip_protocol(match)), files, match) for match in matches]


def _source(name: str, files: fsspec.AbstractFileSystem, path: str) -> Source:
    file = PurePosixPath(re.sub(r"\?.*", "", path) if path.startswith(("http://", "https://")) else path)
    compression = infer_compression(file.name)
    file = file.with_suffix("") if compression else file
    if file.suffix.lower() not in FORMATS:
        raise UsageError(
            f"{name}: unknown format {file.suffix!r}; allowed: {', '.join(FORMATS)}, also compressed (such as .jsonl.gz)"
        )
    return Source(name, files, path, file.suffix.lower(), compression, file.stem)


def _lines(source: Source, content: bytes) -> Iterator[tuple[int, str]]:
    """Numbers from 1 and lines with their ends, as the file has them."""
    with _reported(source.name, "is not UTF-8 text"):
        text = content.decode("utf-8-sig")
    return enumerate(io.StringIO(text, newline=""), start=1)


def _read_json(source: Source, content: bytes) -> Table:
    rows: list[dict[str, Any]] = []
    numbers = []
    for number, line in _lines(source, content):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{source.name}, line {number}: is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UsageError(f"{source.name}, line {number}: holds a {type(row).__name__}; allowed: a JSON object a line")
        rows.append(row)
        numbers.append(number)
    names = dict.fromkeys(name for row in rows for name in row)
    return Table(source, {name: [row.get(name) for row in rows] for name in names}, numbers)


def _read_cells(source: Source, content: bytes) -> Table:
    records = _records(source, content)
    header = [name or "" for name in next(records, (1, []))[1]]
    if len(set(header)) < len(header):
        raise UsageError(f"{source.name}: column names are {header}; allowed: each once")
    rows, numbers = [], []
    for number, row in records:
        if len(row) != len(header):
            raise UsageError(f"{source.name}, line {number}: has {len(row)} cells; allowed: {len(header)}, as in the header")
        rows.append(row)
        numbers.append(number)
    return Table(source, {name: [row[column] for row in rows] for column, name in enumerate(header)}, numbers)


def _records(source: Source, content: bytes) -> Iterator[tuple[int, list[str | None]]]:
    """First line and cells of each record; blank lines are skipped."""
    delimiter = "\t" if source.suffix == ".tsv" else ","
    lines = _lines(source, content)
    raw: list[str] = []

    def kept() -> Iterator[str]:
        for _, line in lines:
            raw.append(line)
            yield line

    reader = csv.reader(kept(), delimiter=delimiter, strict=True)
    while True:
        number = reader.line_num + 1
        raw.clear()
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise UsageError(f"{source.name}, line {number}: is not a row of cells: {error}") from error
        if record is None:
            return
        if record:
            yield number, _with_nulls(record, "".join(raw), delimiter)


def _with_nulls(record: list[str], raw: str, delimiter: str) -> list[str | None]:
    """Unquoted empty cells become None and quoted ones stay text; the csv module tells them apart from Python 3.12 on only."""
    if '""' not in raw:
        return [cell or None for cell in record]
    cells = re.findall(rf'(?:^|{delimiter})("(?:[^"]|"")*"|[^{delimiter}]*)', raw.rstrip("\r\n"))
    return [cell if quoted else None for cell, quoted in zip(record, cells, strict=True)]


def _read_parquet(source: Source, content: bytes) -> Table:
    with _reported(source.name, "is not a readable Parquet file"):
        table = pq.read_table(pa.BufferReader(content))
        table.validate(full=True)
    names = table.column_names
    if len(set(names)) < len(names):
        raise UsageError(f"{source.name}: column names are {names}; allowed: each once")
    return Table(source, dict(zip(names, table.columns, strict=True)), range(1, table.num_rows + 1))
