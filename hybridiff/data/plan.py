"""The plan: which images a job makes, in which shards, decided by the configuration alone."""

import hashlib
import json
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hybridiff.config import DataConfig, SamplingConfig, UsageError
from hybridiff.data.keys import file_slugs, image_suffix, refuse_duplicate
from hybridiff.data.rows import OWN_COLUMNS, Sample, own_rows, user_columns
from hybridiff.data.seeds import given_seed, image_seed
from hybridiff.data.tables import Table, find_sources, read_table

HASHED_AT_ONCE = 4096  # images; the hash depends on it, and must not on the shards' size


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
        rows: Requested images.
        shards: How many there are.
        content: SHA-256 (hex) over everything of all rows as given, in order; what ``sampling`` adds to them is not in it.
        user_schema: The user's own columns, with types as read.
    """

    def __init__(self, table: pa.Table, sampling: SamplingConfig, shard_size: int) -> None:
        self._table = table
        self._sampling = sampling
        self._shard_size = shard_size
        self.rows: int = table.num_rows * sampling.images_per_prompt
        self.shards: int = -(-self.rows // shard_size)
        self.user_schema: pa.Schema = table.drop_columns(list(OWN_COLUMNS)).schema
        self.content: str = self._hash()

    def shard_rows(self, index: int) -> int:
        """How many images shard ``index`` holds; the last one may hold fewer than the others."""
        assert 0 <= index < self.shards, f"shard {index} of {self.shards}"
        return min(self._shard_size, self.rows - index * self._shard_size)

    def shard(self, index: int) -> Shard:
        """Shard ``index``, 0 <= index < shards."""
        return Shard(index, self._samples(index * self._shard_size, self.shard_rows(index)))

    def _samples(self, start: int, count: int) -> tuple[Sample, ...]:
        images = self._sampling.images_per_prompt
        first, stop = start // images, start + count
        rows = self._table.slice(first, -(-stop // images) - first).to_pylist()
        return tuple(self._sample(rows[image // images - first], image % images) for image in range(start, stop))

    def _sample(self, row: dict[str, Any], image: int) -> Sample:
        columns = dict(row)
        key, seed, negative_prompt = columns.pop("key"), columns.pop("seed"), columns.pop("negative_prompt")
        return Sample(
            key=key + image_suffix(image, self._sampling.images_per_prompt),
            prompt=columns.pop("prompt"),
            negative_prompt=self._sampling.negative_prompt if negative_prompt is None else negative_prompt,
            seed=image_seed(self._sampling.seed, key, image) if seed is None else given_seed(seed, image),
            columns=columns,
        )

    def _hash(self) -> str:
        encode = json.JSONEncoder(default=repr).encode
        digest = hashlib.sha256(encode(self._table.schema.names).encode())
        for batch in self._table.to_batches(max_chunksize=10_000):
            for row in batch.to_pylist():
                digest.update(encode(list(row.values())).encode() + b"\n")
        return digest.hexdigest()


def make_plan(data: DataConfig, sampling: SamplingConfig, shard_size: int) -> Plan:
    """Reads and checks every prompt table.

    Args:
        data: Which tables.
        sampling: Images per prompt, the job's seed and the default negative prompt.
        shard_size: Images in a shard.

    Raises:
        UsageError: Anything about the tables is not allowed; names the file and row.
    """
    sources = find_sources(data.prompts)
    tables = [read_table(source, data) for source in sources]
    slugs = file_slugs([source.stem for source in sources])
    images = sampling.images_per_prompt
    own = pa.concat_tables([own_rows(table, data, slug, images) for table, slug in zip(tables, slugs, strict=True)])
    if own.num_rows == 0:
        raise UsageError(f"{', '.join(source.name for source in sources)}: no prompts; allowed: one row or more")
    _check_unique(own["key"], tables)
    return Plan(pa.table({name: own[name] for name in OWN_COLUMNS} | user_columns(tables, data)), sampling, shard_size)


def _check_unique(keys: pa.ChunkedArray, tables: list[Table]) -> None:
    def place(row: int) -> str:
        for table in tables:
            if row < len(table.numbers):
                return table.place(row)
            row -= len(table.numbers)
        raise AssertionError("no such row")

    if pc.count_distinct(keys).as_py() < len(keys):
        refuse_duplicate(keys.to_pylist(), place)
