"""Text formats (JSON lines, CSV, TSV, plain text) read in pieces: one pass, bounded memory, lines numbered as in the file."""

import codecs
import csv
import io
import json
import re
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import IO, Any

from hybridiff.config import DataConfig
from hybridiff.errors import UsageError
from hybridiff.prompts.names import check_columns, check_names, shown
from hybridiff.prompts.sources import CELL_FORMATS, Piece, Source, check_content, open_source, parsing

MAX_LEVELS = 500  # of lists and objects in each other: Python's own reader and writer of JSON end at about a thousand
CHUNK_ROWS = 1 << 16
CHUNK_BYTES = 1 << 23
_BOMS = {  # those of utf-32 first, which begin as those of utf-16 do
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
_STATED = re.compile(r'"?sep=([^"\w])"?', re.IGNORECASE)  # a first line by which Excel knows the separator
Row = tuple[int, dict[str, Any]]
Line = tuple[int, str]
Record = tuple[int, list[str | None]]
csv.field_size_limit(max(1 << 30, csv.field_size_limit()))  # of the whole process; the lines of a cell are counted below


def read_text(source: Source, data: DataConfig) -> Iterator[Piece]:
    """The rows of a text file in pieces. Pieces of JSON lack the columns that come later in the file.

    Raises:
        UsageError: a line is not of the format, or too long; names the file and line.
    """
    with open_source(source, data) as file:
        with parsing(source.name, "cannot be read"):
            head = file.peek(64)
        _check_encoding(source, data, head)
        check_content(source, head)
        lines = _lines(source, data, file)
        names: list[str] = []
        if source.suffix in CELL_FORMATS:
            names, rows = _cells(source, data, lines)
        elif source.suffix == ".txt":
            rows = ((number, {data.prompt_column: line.rstrip("\r\n")}) for number, line in lines if line.strip())
        else:
            rows = _objects(source, lines)
        yield from pieces(source, data, rows, names, file.tell)


def _check_encoding(source: Source, data: DataConfig, head: bytes) -> None:
    """Refuses a file whose first bytes are the mark of another encoding than its option's."""
    encoding = next((encoding for mark, encoding in _BOMS.items() if head.startswith(mark)), None)
    if encoding is not None and not codecs.lookup(data.encoding).name.startswith(encoding):
        raise UsageError(f"{source.name}: is {encoding} text; allowed: {data.encoding}, or data.encoding={encoding}")


def pieces(
    source: Source, data: DataConfig, rows: Iterable[Row], names: Iterable[str], position: Callable[[], int] = lambda: 0
) -> Iterator[Piece]:
    """Rows gathered into pieces of at most ``CHUNK_ROWS`` rows and about ``CHUNK_BYTES``; ``position`` counts bytes."""
    known, rows = dict.fromkeys(names), iter(rows)
    while chunk := _take(rows, position):
        for _, row in chunk:
            if not row.keys() <= known.keys():
                known.update(dict.fromkeys(row))
                check_names(source.name, list(known), data)
        yield Piece(source, {name: [row.get(name) for _, row in chunk] for name in known}, [number for number, _ in chunk])


def _take(rows: Iterator[Row], position: Callable[[], int]) -> list[Row]:
    chunk: list[Row] = []
    start = position()
    for row in rows:
        chunk.append(row)
        if len(chunk) == CHUNK_ROWS or position() - start >= CHUNK_BYTES:
            break
    return chunk


def _lines(source: Source, data: DataConfig, file: IO[bytes]) -> Iterator[Line]:
    """Numbers from 1 and lines with their ends, as the file has them."""
    text = io.TextIOWrapper(file, data.encoding, newline="")
    number = 0
    with parsing(source.name, "cannot be read"):
        try:
            while line := text.readline(data.max_text + 1):
                number += 1
                if len(line) > data.max_text:
                    raise UsageError(f"{source.place(number)}: {_too_long(data)}")
                if line.count("\0") > len(line) / 4:  # UTF-16 or UTF-32 without a mark, and not a character of a cell
                    raise UsageError(f"{source.place(number)}: is full of NUL characters; allowed: text; see data.encoding")
                yield number, line.removeprefix("\ufeff") if number == 1 else line
        except UnicodeDecodeError as error:
            position = max(0, file.tell() - len(error.object) + error.start)
            reason = f"can't decode byte 0x{error.object[error.start]:02x} in position {position}: {error.reason}"
            raise UsageError(f"{source.name}: is not {data.encoding.upper()} text: {reason}; see data.encoding") from error


def _too_long(data: DataConfig) -> str:
    return f"is longer than {data.max_text} characters; allowed: that many, or a higher data.max_text"


def _objects(source: Source, lines: Iterator[Line]) -> Iterator[Row]:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_without_duplicates)
            if line.count("[") + line.count("{") > MAX_LEVELS and is_deep(row):
                raise RecursionError
        except RecursionError as error:
            raise UsageError(f"{source.place(number)}: nests deeply; allowed: {MAX_LEVELS} levels") from error
        except KeyError as error:
            raise UsageError(f"{source.place(number)}: has the name {shown(error.args[0])} twice; allowed: once") from error
        except json.JSONDecodeError as error:
            reason = f"{error.msg.removesuffix(' at')} at character {error.pos + 1}; allowed: a JSON object a line"
            raise UsageError(f"{source.place(number)}: is not JSON: {reason}") from error
        except ValueError as error:
            allowed = f"at most {sys.get_int_max_str_digits()} digits"
            raise UsageError(f"{source.place(number)}: holds a number that is too long; allowed: {allowed}") from error
        if not isinstance(row, dict):
            raise UsageError(f"{source.place(number)}: holds a {type(row).__name__}; allowed: a JSON object a line")
        yield number, row


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise KeyError(next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1))
    return found


def is_deep(value: Any) -> bool:
    """Whether lists and dicts nest beyond ``MAX_LEVELS``."""
    level = [value]
    for _ in range(MAX_LEVELS):
        inside = chain.from_iterable(one.values() if isinstance(one, dict) else one for one in level)
        level = [one for one in inside if isinstance(one, (list, dict))]
    return bool(level)


def _cells(source: Source, data: DataConfig, lines: Iterator[Line]) -> tuple[list[str], Iterator[Row]]:
    """The names in the header, without spaces around them, and the rows; rows of empty cells only are skipped.

    Spreadsheets put such rows before the header too, and empty cells behind the last column.
    """
    delimiter = data.delimiter or ("\t" if source.suffix == ".tsv" else ",")
    first = _first_line(lines, delimiter)
    if stated := _STATED.fullmatch(first[1].strip("\r\n")):
        if data.delimiter not in (None, stated[1]):
            allowed = f"none or {stated[1]!r}, which {source.name} states in its line {first[0]}"
            raise UsageError(f"data.delimiter is {data.delimiter!r}; allowed: {allowed}")
        delimiter = stated[1]
        first = _first_line(lines, delimiter)
    _check_delimiter(source, data, first[1].strip("\r\n"), delimiter)
    lines = chain([first], lines)
    records = _quoted_records(source, data, lines, delimiter) if source.suffix == ".csv" else _tab_records(lines, data, delimiter)
    header = [(name or "").strip() for name in next(records, (1, []))[1]]
    if header.count("") > 1:  # one column may lack a name, as an index does
        while header and not header[-1]:
            header.pop()
    check_names(source.name, header, data)
    if header:
        check_columns(source.name, header, data)

    def rows() -> Iterator[Row]:
        for number, row in records:
            fits = len(row) >= len(header) and not any(cell is not None for cell in row[len(header) :])
            if not any(cell is not None if fits else cell and cell.strip() for cell in row):
                continue
            if not fits:
                raise UsageError(f"{source.place(number)}: has {len(row)} cells; allowed: {len(header)}, as in the header")
            yield number, dict(zip(header, row, strict=False))

    return header, rows()


def _first_line(lines: Iterator[Line], delimiter: str) -> Line:
    """The next line that is more than separators."""
    return next((line for line in lines if line[1].strip(f' "\r\n{delimiter}')), (1, ""))


def _check_delimiter(source: Source, data: DataConfig, header: str, delimiter: str) -> None:
    """Refuses a file whose first line has the prompt's column only if its cells are separated by something else."""
    columns = {mark: [name.strip(' "') for name in header.split(mark)] for mark in {delimiter, *";\t|,"}}
    for other in ";\t|," if data.prompt_column not in columns[delimiter] else "":
        if data.prompt_column in columns[other]:
            raise UsageError(
                f"{source.name}: looks as if its cells were separated by {other!r}: its header is {shown(header)}; allowed: "
                f"{delimiter!r}, or data.delimiter={other!r}"
            )


def _quoted_records(source: Source, data: DataConfig, lines: Iterator[Line], delimiter: str) -> Iterator[Record]:
    """First line and cells of each record of CSV; blank lines are skipped."""
    raw: list[Line] = []  # lines of the record
    length = 0

    def recorded() -> Iterator[str]:
        nonlocal length
        for number, line in lines:
            raw.append((number, line))
            length += len(line)
            if length > data.max_text:  # as where a quote is not closed
                raise UsageError(f"{source.place(raw[0][0])}: a row {_too_long(data)}")
            yield line

    reader = csv.reader(recorded(), delimiter=delimiter, strict=True)
    try:
        for record in reader:
            if record:
                yield raw[0][0], _with_nulls(record, "".join(line for _, line in raw), delimiter)
            raw.clear()
            length = 0
    except csv.Error as error:
        raise UsageError(f"{source.place(raw[0][0])}: is not a row of cells: {error}") from error


def _with_nulls(record: list[str], raw: str, delimiter: str) -> list[str | None]:
    """Unquoted empty cells become None and quoted ones stay text; the csv module distinguishes them from Python 3.12 on only."""
    if '""' not in raw:
        return [cell or None for cell in record]
    one = re.escape(delimiter)
    cells = re.findall(rf'(?:^|{one})("[^"]*(?:""[^"]*)*"|[^{one}]*)', raw.rstrip("\r\n"))
    return [cell if quoted else None for cell, quoted in zip(record, cells, strict=True)]


def _tab_records(lines: Iterator[Line], data: DataConfig, delimiter: str) -> Iterator[Record]:
    """Line and cells of each record of TSV, as people and spreadsheets write it.

    A line is a row, and a quote is a character like any other unless it encloses a whole cell. Quotes enclose tabs and line ends
    only where the lines, each read as a row, do not have as many cells as the header and together they have.
    """
    one = re.escape(delimiter)
    cell = re.compile(rf'(?:^|(?<={one}))("(?:[^"]|"")*"(?={one}|$)|[^{one}]*)(?:{one}|$)')
    opened = re.compile(rf'(?:^|{one})("(?:[^"]|"")*)$')
    ahead: deque[Line] = deque()  # lines that a quote turned out not to enclose
    width = 0

    def take() -> Line | None:
        return ahead.popleft() if ahead else next(lines, None)

    for number, line in iter(take, None):
        text = line.rstrip("\r\n")
        if not text:
            continue
        cells = text.split(delimiter)
        width = width or len(cells)
        if '"' in text and opened.search(text):
            span, quotes, length = [(number, line)], line.count('"'), len(line)
            while quotes % 2 and length <= data.max_text and (more := take()) is not None:
                span.append(more)
                quotes, length = quotes + more[1].count('"'), length + len(more[1])
            found = cell.findall("".join(one for _, one in span).rstrip("\r\n"))
            if len(found) == width and any(one.rstrip("\r\n").count(delimiter) + 1 != width for _, one in span):
                yield number, list(map(_unquoted, found))
                continue
            ahead.extendleft(reversed(span[1:]))
        if len(cells) != width and '"' in text and len(found := cell.findall(text)) == width:
            cells = found
        yield number, list(map(_unquoted, cells))


def _unquoted(cell: str) -> str | None:
    if len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', ""):
        return cell[1:-1].replace('""', '"')
    return cell or None
