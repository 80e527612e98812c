"""Large prompt tables checked with only the columns read that have to be."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from threading import Event

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hybridiff.errors import UsageError
from hybridiff.prompts.keyhash import KeyHashes, are_safe, hash_keys
from hybridiff.prompts.keys import key_limit, make_keys, refuse_duplicate
from hybridiff.prompts.parts import BATCH_ROWS, Part
from hybridiff.prompts.rows import check_keys, check_seeds, check_texts, key_column
from hybridiff.prompts.tables import Source, Table, open_source, reported
from hybridiff.prompts.unreadable import is_text, is_valid, replace_in_column, replace_unreadable

Progress = Callable[[int], None]


def check_rows(part: Part, progress: Progress) -> None:
    """Checks prompts, negative prompts and seeds; prompts are only read where footers do not show that none is null.

    Raises:
        UsageError: A value is not allowed; names the file and row.
    """
    checks: dict[str, Callable[[Table, pa.ChunkedArray], None]] = {}
    with part.open() as file:
        schema, prompt = file.schema_arrow, part.data.prompt_column
        if not (is_text(schema.field(prompt).type) and _has_no_null(file.metadata, prompt)):
            checks[prompt] = lambda table, column: _check_texts(table, prompt, column)
        if "negative_prompt" in schema.names and not is_text(schema.field("negative_prompt").type):
            checks["negative_prompt"] = lambda table, column: _check_texts(table, "negative_prompt", column, nullable=True)
        if "seed" in schema.names:
            checks["seed"] = _check_seeds
    for first, rows in part.batches(list(checks)) if checks else ():
        for name, check in checks.items():
            check(part.table(first, rows), rows[name])
        progress(first + rows.num_rows)


def check_unique(parts: Sequence[Part], progress: Progress) -> None:
    """Checks keys, all parts' together.

    Raises:
        UsageError: A key is not allowed or there twice; names the files and rows.
    """
    slugs = [part.slug for part in parts if part.rows]
    if all(part.makes_keys for part in parts) and len(set(slugs)) == len(slugs):
        return  # made keys end in the row's number, and what comes before is the file's own
    with KeyHashes() as hashes:
        for part in parts:
            for first, keys in _keys(part):
                hashes.add(hash_keys(keys))
                progress(first + len(keys))
        repeated = hashes.repeated()
    if len(repeated):
        _refuse_repeated(parts, repeated[:BATCH_ROWS])


def fits(part: Part, name: str, kind: pa.DataType) -> bool:
    """Whether all values of a user's column can be had in another type."""
    if part.kinds[name] == kind:
        return True
    with suppress(pa.ArrowException, UnicodeError):
        for column in part.user_batches(name):
            column.cast(kind)
        return True
    return False


def values_fit(part: Part, name: str) -> bool:
    """Whether all values of a user's column can be had in the type that it is said to have."""
    with suppress(pa.ArrowException, UnicodeError, OverflowError):
        for _ in part.user_batches(name):
            pass
        return True
    return False


def file_digest(source: Source, stop: Event) -> str:
    """SHA-256 (hex) of a file's bytes, decompressed; gives up once ``stop`` is set."""
    digest = hashlib.sha256()
    with open_source(source) as file, reported(source.name, "cannot be read"):
        while not stop.is_set() and (block := file.read(1 << 20)):
            digest.update(block)
    return digest.hexdigest()


def _keys(part: Part) -> Iterator[tuple[int, pa.StringArray]]:
    """Checked keys in pieces, each with the position of its first."""
    limit = key_limit(part.images)
    with part.open() as file:
        name = key_column(file.schema_arrow.names, part.data)
    if name is None:
        for first in range(0, part.rows, BATCH_ROWS):
            yield first, pa.array(make_keys(part.slug, min(BATCH_ROWS, part.rows - first), first), pa.string())
        return
    for first, rows in part.batches([name]):
        keys = _as_strings(rows[name])
        if keys is not None and not (part.is_copy or is_valid(keys)):
            row, reason = next(iter(replace_unreadable(rows)[1].items()))
            raise UsageError(f"{part.place(first + row)}: {reason}")
        if keys is None or not (part.is_copy or are_safe(keys, limit)):
            keys = pa.array(check_keys(part.table(first, rows), name, part.images), pa.string())
        yield first, keys


def _as_strings(column: pa.ChunkedArray) -> pa.StringArray | None:
    if is_text(column.type) or pa.types.is_integer(column.type):
        return column.cast(pa.string()).combine_chunks()
    return None


def _refuse_repeated(parts: Sequence[Part], repeated: np.ndarray) -> None:
    """Looks at the keys themselves: different ones may have equal hashes."""
    places: list[tuple[Part, int]] = []

    def candidates() -> Iterator[str]:
        for part in parts:
            for first, keys in _keys(part):
                for row in np.flatnonzero(np.isin(hash_keys(keys), repeated)):
                    places.append((part, first + int(row)))
                    yield keys[int(row)].as_py()

    refuse_duplicate(candidates(), lambda index: places[index][0].place(places[index][1]))


def _has_no_null(metadata: pq.FileMetaData, name: str) -> bool:
    column = [metadata.schema.column(index).path for index in range(metadata.num_columns)].index(name)
    for group in range(metadata.num_row_groups):
        statistics = metadata.row_group(group).column(column).statistics
        if statistics is None or not statistics.has_null_count or statistics.null_count:
            return False
    return True


def _check_texts(table: Table, name: str, column: pa.ChunkedArray, nullable: bool = False) -> None:
    if not (is_text(column.type) and (nullable or column.cast(pa.string()).null_count == 0)):
        check_texts(replace(table, columns={name: replace_in_column(column)[0]}), name, nullable)


def _check_seeds(table: Table, column: pa.ChunkedArray) -> None:
    if pa.types.is_integer(column.type):
        bounds = pc.min_max(column).as_py()
        if bounds["min"] is None or (bounds["min"] >= 0 and bounds["max"] < 2**63):
            return
    check_seeds(table)
