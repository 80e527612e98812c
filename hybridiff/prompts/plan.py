"""The plan: which images a job makes, in which shards, decided by the configuration alone."""

import hashlib
import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pyarrow as pa

from hybridiff.config import DataConfig, SamplingConfig
from hybridiff.prompts.content import describe_differences
from hybridiff.prompts.names import shown
from hybridiff.prompts.normalise import Request
from hybridiff.prompts.rows import Sample, given_seed, image_seed, image_suffix
from hybridiff.prompts.shared import Role, SharedTable, identity
from hybridiff.prompts.sources import check_reading, find_sources
from hybridiff.prompts.table import MEMORY_BYTES, PromptTable, table_in_memory, table_on_disk
from hybridiff.storage.folder import Folder

_CHUNK = 1 << 14  # rows of the table that are read at once


@dataclass(frozen=True)
class Shard:
    """Consecutive samples that are written and committed together."""

    index: int
    samples: tuple[Sample, ...]

    def batches(self, size: int) -> list[tuple[Sample, ...]]:
        """Consecutive samples, at most ``size`` a batch; none mixes samples with and without a negative prompt."""
        batches = []
        for _, group in groupby(self.samples, key=lambda sample: sample.negative_prompt is None):
            alike = tuple(group)
            batches += [alike[start : start + size] for start in range(0, len(alike), size)]
        return batches


class Plan:
    """All images of a job, in order. Samples are made when their shard is asked for: the plan itself stays small.

    Attributes:
        rows: requested images
        shards: number of shards
        content: identity of all rows and the types of their columns, SHA-256 in hex; neither files nor sampling count in it
        user_schema: names and types of the user's own columns
        summary: description for the run record, by which a changed table is described; see ``describe_change``
    """

    def __init__(self, table: PromptTable, sampling: SamplingConfig, shard_size: int) -> None:
        self._table = table
        self._sampling = sampling
        self._shard_size = shard_size
        self.rows: int = table.count * sampling.images_per_prompt
        self.shards: int = -(-self.rows // shard_size)
        self.user_schema: pa.Schema = table.user_schema
        self.content: str = table.content
        self.summary: dict[str, Any] = table.summary

    def notices(self) -> list[str]:
        """What a user should know before the run: columns that look like settings and are none, and empty prompts."""
        found, table = [], self._table
        if table.settings:
            names = ", ".join(map(shown, table.settings))
            found.append(
                f"columns that look like settings are carried as metadata alone: {names}; settings come from the options"
            )
        if table.empty_prompts:
            found.append(f"{table.empty_prompts} of {table.count} prompts are empty")
        return found

    def describe_change(self, summary: dict[str, Any] | None) -> str:
        """How the prompts differ from those that a corpus was started with, in words; ``summary`` is theirs."""
        if summary is None:
            return "its prompts are others"
        return f"its prompt table changed: {describe_differences(summary, self.summary, self._table.rows)}"

    def shard_rows(self, index: int) -> int:
        """How many images shard ``index`` holds; the last one may hold fewer than the others."""
        assert 0 <= index < self.shards, f"shard {index} of {self.shards}"
        return min(self._shard_size, self.rows - index * self._shard_size)

    def shard(self, index: int) -> Shard:
        """Shard ``index``, 0 <= index < shards."""
        return Shard(index, self._samples(index * self._shard_size, self.shard_rows(index)))

    def sampled(self, count: int) -> pa.Table:
        """``count`` rows of the prompt table, fewer if it has fewer, in its order: those whose keys have the least SHA-256.

        The choice depends on the keys alone. Rows that could not be read are left out.
        """
        chosen = {place for _, place in heapq.nsmallest(count, self._hashes())}
        tables = [self._table.schema.empty_table()]
        for start, rows in self._chunks():
            mine = [place - start for place in range(start, start + rows.num_rows) if place in chosen]
            tables += [rows.take(mine)] if mine else []
        return pa.concat_tables(tables).drop_columns(["error"])

    def _hashes(self) -> Iterator[tuple[bytes, int]]:
        """The hash of each readable row's key, and the row's place."""
        for start, rows in self._chunks():
            for place, (key, error) in enumerate(zip(rows["key"].to_pylist(), rows["error"].to_pylist(), strict=True)):
                if error is None:
                    yield hashlib.sha256(key.encode()).digest(), start + place

    def _chunks(self) -> Iterator[tuple[int, pa.Table]]:
        for start in range(0, self._table.count, _CHUNK):
            yield start, self._table.rows(start, min(_CHUNK, self._table.count - start))

    def discard(self) -> None:
        """Removes the table that was made for this plan where others find it, if any; the plan is of no more use then."""
        self._table.discard()

    def _samples(self, start: int, count: int) -> tuple[Sample, ...]:
        images = self._sampling.images_per_prompt
        first, stop = start // images, start + count
        rows = self._table.read(first, -(-stop // images) - first)
        return tuple(self._sample(rows[image // images - first], image % images) for image in range(start, stop))

    def _sample(self, row: dict[str, Any], image: int) -> Sample:
        columns = dict(row)
        error = columns.pop("error", None)
        key, seed, negative_prompt = columns.pop("key"), columns.pop("seed"), columns.pop("negative_prompt")
        return Sample(
            key=key + image_suffix(image, self._sampling.images_per_prompt),
            prompt=columns.pop("prompt"),
            negative_prompt=self._sampling.negative_prompt if negative_prompt is None else negative_prompt,
            seed=image_seed(self._sampling.seed, key, image) if seed is None else given_seed(seed, image),
            columns=columns,
            error=error,
        )


def make_plan(
    data: DataConfig,
    sampling: SamplingConfig,
    shard_size: int,
    folder: Folder | None = None,
    role: Role = "alone",
    held_bytes: int = MEMORY_BYTES,
    before_copying: Callable[[], None] = lambda: None,
    negative_prompts: str | None = None,
) -> Plan:
    """Reads and checks every prompt table.

    Few rows are held in memory; many are written to one Parquet file in ``folder`` once, under a name that changes whenever a
    source does, and read from there by all ranks and later runs. What can't be read of a row, such as text of Parquet that is not
    UTF-8, is replaced, and its samples have an ``error``.

    Args:
        data: sources of prompts and how they are read
        sampling: images per prompt, the job's seed and the default negative prompt
        shard_size: images in a shard
        folder: corpus that holds large tables; None: nothing does
        role: this rank's part in making large tables
        held_bytes: bytes of rows, as Arrow, that may be held in memory, ``MEMORY_ROWS`` at most
        before_copying: called before a large table is made, which may take hours, unless it was made before; what it raises ends
            the planning
        negative_prompts: what is allowed in place of rows' negative prompts where they change nothing; None: they are allowed

    Raises:
        UsageError: anything about the tables is not allowed; names the file and row.
    """
    sources = find_sources(data.sources)
    check_reading(data, sources)
    request = Request(sources, data, sampling.images_per_prompt, negative_prompts)
    shard_rows = -(-shard_size // sampling.images_per_prompt)
    name = None if folder is None else identity(request, shard_rows)
    shared = None if folder is None or name is None else SharedTable(folder, name, request, shard_rows)
    table = None if shared is None else shared.load()
    if table is None:
        table = table_in_memory(request, held_bytes)
    if table is None:
        before_copying()
        if shared is not None and role != "alone":
            table = shared.make() if role == "lead" else shared.wait()
    return Plan(table or table_on_disk(request, shard_rows), sampling, shard_size)
