"""Large prompt tables made ready: text formats copied, everything checked that does not need the prompts themselves."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from threading import Event
from typing import IO, Any, Protocol

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from hybridiff.prompts.copies import COPIED, copy_text
from hybridiff.prompts.kinds import has_readers, is_nanoseconds
from hybridiff.prompts.names import check_names
from hybridiff.prompts.parts import Part, batch_rows, open_parquet
from hybridiff.prompts.rows import Request, check_columns, key_column
from hybridiff.prompts.scan import Progress, check_rows, check_unique, file_digest, fits, values_fit
from hybridiff.prompts.streamed import UserColumn, unite_columns
from hybridiff.prompts.tables import Source, open_source, reported, size_of

GROUP_ROWS, GROUP_BYTES = 1 << 20, 1 << 28  # in a larger row group a shard's rows can't be found fast: such files are copied too


class CopyPlace(Protocol):
    """Where copies lie.

    Attributes:
        files: Their file system.
    """

    files: fsspec.AbstractFileSystem

    def path(self, index: int) -> str:
        """Of the copy of file ``index``."""

    def writing(self, index: int) -> AbstractContextManager[Any]:
        """Opens the copy of file ``index``, which appears whole or not at all."""

    def progress(self, rows: int) -> None:
        """Is told now and then how far things are."""


@dataclass(frozen=True)
class Made:
    """Tables made ready: parts, columns of the user's and the identity of the rows."""

    parts: list[Part]
    columns: list[UserColumn]
    content: str


def make_ready(request: Request, place: CopyPlace) -> Made:
    """Copies and checks.

    Raises:
        UsageError: Anything about the tables is not allowed; names the file and row.
    """
    with _digests() as digest_of:
        made = [_part(request, index, place, digest_of) for index in range(len(request.sources))]
        parts = [part for part, _ in made]
        if sum(part.rows for part in parts) == 0:
            raise request.refuse_empty()
        for part in parts:
            if part.rows and not part.is_copy:
                check_rows(part, place.progress)
        check_unique(parts, place.progress)
        columns = unite_columns(parts)
        return Made(parts, columns, _content(request, parts, [digest() for _, digest in made]))


@contextmanager
def _digests() -> Iterator[Callable[[Source], Callable[[], str]]]:
    """Hashing on a thread of its own, file by file."""
    stop = Event()
    with ThreadPoolExecutor(1, thread_name_prefix="digest") as pool:
        try:
            yield lambda source: pool.submit(file_digest, source, stop).result
        finally:
            stop.set()


def _part(
    request: Request, index: int, place: CopyPlace, digest_of: Callable[[Source], Callable[[], str]]
) -> tuple[Part, Callable[[], str]]:
    source, slug = request.sources[index], request.slugs[index]
    if source.suffix != ".parquet":
        return _copied_part(request, source, slug, index, place)
    digest = digest_of(source)
    files, path = source.files, source.path
    if source.compression or size_of(source) is None:  # nothing can be looked up in it
        with open_source(source) as file, place.writing(index) as sink, reported(source.name, "cannot be read"):
            shutil.copyfileobj(file, sink, 1 << 20)
        files, path = place.files, place.path(index)
    elif _has_huge_groups(source):
        with place.writing(index) as sink:
            _regroup(source, sink, place.progress)
        files, path = place.files, place.path(index)
    return _native_part(request, source, slug, files, path), digest


def _native_part(request: Request, source: Source, slug: str, files: fsspec.AbstractFileSystem, path: str) -> Part:
    with open_parquet(source.name, files, path) as file:
        rows, schema = file.metadata.num_rows, file.schema_arrow
    check_names(source.name, schema.names)
    if rows:
        check_columns(source, schema.names, request.data)
    key = key_column(schema.names, request.data)
    taken = {request.data.prompt_column, key, "negative_prompt", "seed"}
    kinds = {field.name: field.type for field in schema if field.name not in taken}
    part = Part(source, files, path, slug, request.data, request.images, rows, kinds, is_copy=False, makes_keys=key is None)
    for name, kind in kinds.items():
        if not has_readers(kind):
            part = replace(part, kinds=part.kinds | {name: pa.string()})
        elif is_nanoseconds(kind):
            micro = pa.timestamp("us", kind.tz)
            part = replace(part, kinds=part.kinds | {name: micro if fits(part, name, micro) else pa.string()})
    return part


def _copied_part(request: Request, source: Source, slug: str, index: int, place: CopyPlace) -> tuple[Part, Callable[[], str]]:
    with place.writing(index) as sink:
        copied = copy_text(source, request.data, slug, request.images, sink, place.progress)
    part = Part(
        source,
        place.files,
        place.path(index),
        slug,
        COPIED,
        request.images,
        copied.rows,
        copied.kinds,
        is_copy=True,
        makes_keys=copied.makes_keys,
    )
    for name in copied.uncertain:
        if not values_fit(part, name):
            part = replace(part, kinds=part.kinds | {name: pa.string()})
    return part, lambda: copied.sha256


def _has_huge_groups(source: Source) -> bool:
    with open_parquet(source.name, source.files, source.path) as file:
        groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
    return any(group.num_rows > GROUP_ROWS or group.total_byte_size > GROUP_BYTES for group in groups)


def _regroup(source: Source, sink: IO[bytes], progress: Progress) -> None:
    rows = 0
    with open_parquet(source.name, source.files, source.path) as file, pq.ParquetWriter(sink, file.schema_arrow) as writer:
        for batch in file.iter_batches(batch_rows(file)):
            writer.write_batch(batch)
            rows += batch.num_rows
            progress(rows)


def _content(request: Request, parts: list[Part], digests: list[str]) -> str:
    """What two tables share only if their rows are equal: the bytes, and all that decides what is read from them."""
    data = request.data
    files = [
        [part.source.suffix, part.slug if part.makes_keys else None, part.rows, digest]
        for part, digest in zip(parts, digests, strict=True)
    ]
    return hashlib.sha256(json.dumps(["files", data.prompt_column, data.key_column, files]).encode()).hexdigest()
