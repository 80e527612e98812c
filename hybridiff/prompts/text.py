"""Text formats to columns, in one streaming pass."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import IO, Any

from hybridiff.config import DataConfig
from hybridiff.errors import UsageError
from hybridiff.prompts.names import check_names
from hybridiff.prompts.tables import CELL_FORMATS, Source, Table, reported

MOST_LEVELS = 500  # of lists and objects in each other: Python's own reader and writer of JSON end at about a thousand
CELL_CHARACTERS = 1 << 24  # an unclosed quote swallows no more than that
csv.field_size_limit(max(CELL_CHARACTERS, csv.field_size_limit()))  # of the whole process, so it is set once; by default 131,072

CHUNK_ROWS = 1 << 16  # held as Python values at once
CHUNK_BYTES = 1 << 23
PIECE_ROWS = 16  # between two looks at how many bytes that is


def read_text(source: Source, data: DataConfig, file: IO[bytes], chunk_rows: int | None = CHUNK_ROWS) -> Iterator[Table]:
    """A text format's rows in tables of at most ``chunk_rows`` rows (None: all at once), one at least, perhaps empty.

    A JSON table lacks the columns that come later in the file.
    """
    lines = _lines(source, file)
    if source.suffix in CELL_FORMATS:
        return _read_cells(source, file, lines, chunk_rows)
    if source.suffix == ".txt":
        rows = ((number, {data.prompt_column: line.rstrip("\r\n")}) for number, line in lines if line.strip())
        return _tables(source, file, rows, [data.prompt_column], chunk_rows)
    return _tables(source, file, _objects(source, lines), [], chunk_rows)


def _tables(
    source: Source, file: IO[bytes], rows: Iterator[tuple[int, dict[str, Any]]], names: list[str], limit: int | None
) -> Iterator[Table]:
    known = dict.fromkeys(names)
    first = True
    while chunk := _take(rows, limit, file.tell):
        for _, row in chunk:
            if not row.keys() <= known.keys():
                known.update(dict.fromkeys(row))
                check_names(source.name, list(known))
        yield Table(source, {name: [row.get(name) for _, row in chunk] for name in known}, [number for number, _ in chunk])
        first = False
    if first:
        yield Table(source, {name: [] for name in known}, [])


def _take(
    rows: Iterator[tuple[int, dict[str, Any]]], limit: int | None, position: Callable[[], int]
) -> list[tuple[int, dict[str, Any]]]:
    if limit is None:
        return list(rows)
    chunk: list[tuple[int, dict[str, Any]]] = []
    begun = position()
    while len(chunk) < limit and position() - begun < CHUNK_BYTES:
        piece = list(islice(rows, min(PIECE_ROWS, limit - len(chunk))))
        if not piece:
            break
        chunk += piece
    return chunk


def _lines(source: Source, file: IO[bytes]) -> Iterator[tuple[int, str]]:
    """Numbers from 1 and lines with their ends, as the file has them."""
    text = io.TextIOWrapper(file, "utf-8-sig", newline="")
    with reported(source.name, "cannot be read"):
        try:
            yield from enumerate(text, start=1)
        except UnicodeDecodeError as error:
            position = file.tell() - len(error.object) + error.start
            reason = f"can't decode byte 0x{error.object[error.start]:02x} in position {position}: {error.reason}"
            raise UsageError(f"{source.name}: is not UTF-8 text: 'utf-8' codec {reason}") from error


def _objects(source: Source, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if line.count("[") + line.count("{") > MOST_LEVELS and _is_deep(row):
                raise RecursionError
        except RecursionError as error:
            raise UsageError(f"{source.name}, line {number}: nests deeply; allowed: {MOST_LEVELS} levels") from error
        except ValueError as error:
            raise UsageError(f"{source.name}, line {number}: is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UsageError(f"{source.name}, line {number}: holds a {type(row).__name__}; allowed: a JSON object a line")
        yield number, row


def _is_deep(value: Any) -> bool:
    level = [value]  # the lists and objects of it
    for _ in range(MOST_LEVELS):
        inside = chain.from_iterable(one.values() if isinstance(one, dict) else one for one in level)
        level = [one for one in inside if isinstance(one, (list, dict))]
    return bool(level)


def _read_cells(source: Source, file: IO[bytes], lines: Iterator[tuple[int, str]], limit: int | None) -> Iterator[Table]:
    records = _records(source, lines)
    header = [name or "" for name in next(records, (1, []))[1]]
    check_names(source.name, header)

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        for number, row in records:
            if len(row) != len(header):
                raise UsageError(f"{source.name}, line {number}: has {len(row)} cells; allowed: {len(header)}, as in the header")
            yield number, dict(zip(header, row, strict=True))

    return _tables(source, file, rows(), header, limit)


def _records(source: Source, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, list[str | None]]]:
    """First line and cells of each record; blank lines are skipped."""
    delimiter = "\t" if source.suffix == ".tsv" else ","
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
    cells = re.findall(rf'(?:^|{delimiter})("[^"]*(?:""[^"]*)*"|[^{delimiter}]*)', raw.rstrip("\r\n"))
    return [cell if quoted else None for cell, quoted in zip(record, cells, strict=True)]
