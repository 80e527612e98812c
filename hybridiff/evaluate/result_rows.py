"""The rows of a result: one Parquet file from all parts in order, with what repeats what, and columns for its figures."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hybridiff.corpus.layout import EVALUATIONS
from hybridiff.evaluate.metrics.image_checks import HASH_SIZE, Duplicate, Fingerprint, duplicates
from hybridiff.evaluate.parts import FEATURES, FLAGS, WORKING_COLUMNS, Unit, part_schema, read_part
from hybridiff.evaluate.prepared import Prepared, Target
from hybridiff.storage.folder import Folder

Parts = tuple[Folder, list[str]]  # folder, and paths in order


def rows_path(name: str) -> str:
    """Path of a result's rows."""
    return f"{EVALUATIONS}/{name}.parquet"


def unit_parts(prepared: Prepared, place: int) -> Parts:
    """The parts of a corpus, by its place, or of the reference."""
    found = [prepared.part(Unit(place, index)) for index in range(prepared.images_of(place).shards)]
    return prepared.targets[max(0, place)].folder, [path for _, path in found]


def write_rows(target: Target, parts: Parts) -> list[Duplicate | None]:
    """Writes the rows, and returns which of them repeat another's image."""
    repeats = _duplicates(parts)
    schema = row_schema(parts)
    with target.folder.publishing(rows_path(target.name), sweep=False) as handle, pq.ParquetWriter(handle, schema) as writer:
        start = 0
        for shard, table in enumerate(part_tables(parts)):
            some = repeats[start : start + table.num_rows]
            start += table.num_rows
            columns = {
                "shard": pa.array([shard] * table.num_rows, pa.int32()),
                "phash": pa.array(
                    [None if value is None else f"{value:016x}" for value in table["phash"].to_pylist()], pa.string()
                ),
                "duplicate": pa.array([one is not None for one in some], pa.bool_()),
                "duplicate_of": pa.array([one.of if one else None for one in some], pa.string()),
            }
            columns |= {name: table[name] for name in table.column_names if name not in columns}
            missing = {f.name: pa.nulls(table.num_rows, f.type) for f in schema if f.name not in columns}
            writer.write_table(pa.table({name: (columns | missing)[name] for name in schema.names}, schema))
    return repeats


def row_schema(parts: Parts) -> pa.Schema:
    """Columns of the rows: key, shard, metrics, flags, duplicates."""
    measured: dict[str, pa.DataType] = {}
    for schema in (part_schema(parts[0], path) for path in parts[1]):
        measured |= {f.name: f.type for f in schema if f.name not in WORKING_COLUMNS and not f.name.startswith(FEATURES)}
    fixed = [("key", pa.string()), ("shard", pa.int32())]
    flags = [(name, pa.bool_()) for name in FLAGS]
    repeats = [("phash", pa.string()), ("duplicate", pa.bool_()), ("duplicate_of", pa.string())]
    return pa.schema([*fixed, *sorted(measured.items()), *flags, *repeats])


def _duplicates(parts: Parts) -> list[Duplicate | None]:
    keys: list[str] = []
    prints: list[Fingerprint | None] = []
    for table in part_tables(parts, ["key", "digest", "phash", "thumbnail"]):
        for row in table.to_pylist():
            keys.append(row["key"])
            prints.append(None if row["digest"] is None else _fingerprint(row))
    present = [place for place, known_by in enumerate(prints) if known_by is not None]
    found = duplicates([keys[place] for place in present], [one for one in prints if one is not None])
    repeats: list[Duplicate | None] = [None] * len(keys)
    for place, repeat in zip(present, found, strict=True):
        repeats[place] = repeat
    return repeats


def _fingerprint(row: dict[str, Any]) -> Fingerprint:
    thumbnail = np.frombuffer(row["thumbnail"], np.uint8).reshape(HASH_SIZE, HASH_SIZE, 3)
    return Fingerprint(row["digest"], row["phash"], thumbnail)


def part_tables(parts: Parts, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Columns of each part; by default all but feature vectors."""
    folder, paths = parts
    for path in paths:
        kept = columns or [name for name in part_schema(folder, path).names if not name.startswith(FEATURES)]
        yield read_part(folder, path, kept)


def column_values(parts: Parts, name: str) -> NDArray[np.float64]:
    """A column of all parts; NaN where a row, or a whole part, has no value."""
    folder, paths = parts
    found = []
    for path in paths:
        known = name in part_schema(folder, path).names
        column = read_part(folder, path, [name if known else "key"])[0]
        values = pc.fill_null(column, math.nan).to_numpy() if known else np.full(len(column), math.nan)
        found.append(np.asarray(values, dtype=np.float64))
    return np.concatenate(found)
