"""What tops up a selection: a prompt table of the rows that are left out, with new keys and seeds, and its job."""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pyarrow import csv

from hybridiff.columns import CAPTION, IMAGE, PROMPT_COLUMNS, SCHEMA
from hybridiff.corpus.layout import metadata_name
from hybridiff.corpus.reader import CHUNK, reading
from hybridiff.errors import UsageError, amount
from hybridiff.export.selection import LEFT_OUT, Selection
from hybridiff.prompts.rows import KEY_BYTES, image_seed
from hybridiff.storage.folder import Folder

REFILL_OF = "refill_of"  # column with the key of the row that is replaced
_SUFFIX = re.compile(r"-r([1-9]\d{0,8})$")
_ROWS = 4096  # in memory
_LONGEST = KEY_BYTES - 40  # bytes of a key, so that there is room for suffixes of further images and refills
_NOT_OPTIONS = {"model": ("weights",), "output": ("url", CAPTION, "shard_bytes", "columns"), "data": ("prompts", "prompt_column")}
_READING = ("key_column", "delimiter", "encoding", "max_text", "max_expansion", "max_rows", "max_row_group")
_Rows = Iterator[list[dict[str, Any]]]


def write_refill(selection: Selection, url: str) -> list[str]:
    """Writes the table and beside it, as NAME.yaml, the options of the corpus with the table as its prompts.

    Args:
        selection: the plan.
        url: a path or any fsspec url that ends with .parquet or .csv.

    Returns:
        What was written, in lines.

    Raises:
        UsageError: there is such a file already, with something else in it.
    """
    schema = _schema(selection)
    number = 1 + max((int(found[1]) for key in _keys(selection) if (found := _SUFFIX.search(key))), default=0)
    count = 0

    def write(file: IO[bytes]) -> None:
        nonlocal count
        count = _write(file, url.endswith(".csv"), schema, _rows(selection, schema, number))

    job = f"{url.rpartition('.')[0]}.yaml"
    _publish(url, write)
    _publish(
        job, lambda file: file.write(yaml.safe_dump(job_options(selection, url), sort_keys=False, allow_unicode=True).encode())
    )
    return [
        f"{url}: {amount(count, 'row')} with new keys and seeds",
        f"hybridiff generate --config {job} --output.url ... generates them",
    ]


def job_options(selection: Selection, prompts: str) -> dict[str, Any]:
    """The options that the corpus was generated with, for another table of prompts: an image for each of its rows."""
    found = {name: dict(one) for name, one in selection.source.run["configuration"].items() if isinstance(one, dict)}
    found.pop("select", None)
    for section, names in _NOT_OPTIONS.items():
        found[section] = {name: value for name, value in found.get(section, {}).items() if name not in names}
    kept = {name: value for name, value in found["data"].items() if name not in _READING}
    found["data"] = {"prompts": [prompts], **kept}
    found["sampling"] = found.get("sampling", {}) | {"images_per_prompt": 1}
    return found


def _publish(url: str, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes a file that is not there yet, or is there with the same content."""
    directory, _, name = url.rpartition("/")
    folder = Folder(directory or ("/" if url.startswith("/") else os.curdir), "--refill")
    with tempfile.TemporaryFile() as file:
        write(file)
        digest = _digest(file)
        try:
            with folder.fs.open(folder.path(name), "rb") as there:
                if _digest(there) != digest:
                    raise UsageError(f"--refill: {url} is there already, with something else in it; allowed: a new name")
                return
        except FileNotFoundError:
            pass
        with folder.publishing(name, sweep=False) as target:
            while data := file.read(CHUNK):
                target.write(data)


def _digest(file: IO[bytes]) -> bytes:
    """SHA-256 of a file, which is rewound before and after."""
    file.seek(0)
    found = hashlib.file_digest(file, "sha256").digest()  # type: ignore[arg-type]  # IO has what it reads by
    file.seek(0)
    return found


def _schema(selection: Selection) -> pa.Schema:
    """The columns that a row was requested with, and the key of the row that is to be replaced."""
    source = selection.scored.schema
    others = {*SCHEMA.names, IMAGE.name, REFILL_OF}
    requested = [field for field in source if field.name in PROMPT_COLUMNS]
    own = [field.remove_metadata() for field in source if field.name not in others]
    return pa.schema([*requested, *own, pa.field(REFILL_OF, pa.string())])


def _keys(selection: Selection) -> Iterator[str]:
    for is_selected in (True, False):
        for _, _, key in selection.scored.chosen(is_selected):
            yield key


def _rows(selection: Selection, schema: pa.Schema, number: int) -> _Rows:
    """The rows of the table, some at a time."""
    corpus = selection.source.corpus
    names = [name for name in schema.names if name != REFILL_OF]
    for shard, splits in enumerate(selection.splits):
        name, first = metadata_name(shard), 0
        with reading(corpus, shard, name), corpus.fs.open(corpus.path(name), "rb") as handle:
            for batch in pq.ParquetFile(handle).iter_batches(_ROWS, columns=names):
                left_out = splits[first : first + batch.num_rows] == LEFT_OUT
                first += batch.num_rows
                if left_out.any():
                    yield [_refilled(row, number) for row in batch.filter(pa.array(left_out)).to_pylist()]


def _refilled(row: dict[str, Any], number: int) -> dict[str, Any]:
    """A row with a key and a seed of its own, which follow from the old ones."""
    old = row["key"]
    key = f"{old}-r{number}"
    if len(key.encode()) > _LONGEST:
        kept = old.encode()[: _LONGEST - 40].decode(errors="ignore")
        key = f"{kept}-{hashlib.sha256(old.encode()).hexdigest()[:24]}-r{number}"
    seed = image_seed(row["seed"], key, number)
    return row | {"key": key, "seed": seed if seed != row["seed"] else seed ^ 1, REFILL_OF: old}


def _write(file: IO[bytes], is_csv: bool, schema: pa.Schema, rows: _Rows) -> int:
    """Writes the table and returns the number of its rows."""
    if is_csv:
        nested = [field.name for field in schema if pa.types.is_nested(field.type)]
        schema = pa.schema([field.with_type(pa.string()) if field.name in nested else field for field in schema])
        quoted = csv.WriteOptions(quoting_style="all_valid")  # an empty cell without quotes is null
        table: Any = csv.CSVWriter(file, schema, write_options=quoted)
    else:
        nested, table = [], pq.ParquetWriter(file, schema)
    count = 0
    with table:
        for some in rows:
            texts = [{name: _json(row[name]) for name in nested} for row in some]
            found = [row | text for row, text in zip(some, texts, strict=True)]
            table.write_table(pa.Table.from_pylist(found, schema=schema))
            count += len(some)
    return count


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False, default=str)
