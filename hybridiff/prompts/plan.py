"""The plan: which images a job makes, in which shards, decided by the configuration alone."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import pyarrow as pa

from hybridiff.columns import PROMPT_COLUMNS
from hybridiff.config import DataConfig, SamplingConfig
from hybridiff.prompts.held import HeldRows
from hybridiff.prompts.keys import image_suffix
from hybridiff.prompts.places import Store
from hybridiff.prompts.rows import Request, Sample
from hybridiff.prompts.seeds import given_seed, image_seed
from hybridiff.prompts.store import Role, stream
from hybridiff.prompts.tables import find_sources, weight

HELD_BYTES = 32 << 20  # tables beyond are never held in memory


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


class Rows(Protocol):
    """Checked rows of prompt tables, wherever they are held.

    Attributes:
        count: Rows.
        schema: Of key, prompt, negative_prompt, seed and the user's columns.
        content: Their identity (hex, 64 characters).
    """

    count: int
    schema: pa.Schema
    content: str

    def discard(self) -> None:
        """Removes the copies that this process has made for others, if any."""

    def read(self, first: int, count: int) -> list[dict[str, Any]]:
        """Rows from ``first`` on; one that can't be read has the reason under ``error``, a name that no user column has."""


class Plan:
    """All images of a job, in order. Samples are made when their shard is asked for: the plan itself stays small.

    Attributes:
        rows: Requested images.
        shards: How many there are.
        content: Identity of all rows as given, in order; what ``sampling`` adds to them is not in it. Of small tables it is
            the SHA-256 of the rows and the types of their columns, of large ones that of the files' bytes: see ``make_plan``.
        user_schema: The user's own columns, with types as read.
    """

    def __init__(self, rows: Rows, sampling: SamplingConfig, shard_size: int) -> None:
        self._rows = rows
        self._sampling = sampling
        self._shard_size = shard_size
        self.rows: int = rows.count * sampling.images_per_prompt
        self.shards: int = -(-self.rows // shard_size)
        self.user_schema: pa.Schema = pa.schema([field for field in rows.schema if field.name not in PROMPT_COLUMNS])
        self.content: str = rows.content

    def shard_rows(self, index: int) -> int:
        """How many images shard ``index`` holds; the last one may hold fewer than the others."""
        assert 0 <= index < self.shards, f"shard {index} of {self.shards}"
        return min(self._shard_size, self.rows - index * self._shard_size)

    def shard(self, index: int) -> Shard:
        """Shard ``index``, 0 <= index < shards."""
        return Shard(index, self._samples(index * self._shard_size, self.shard_rows(index)))

    def discard(self) -> None:
        """Removes the copies of tables that were made for this plan where others find them, if any; it is of no more use then."""
        self._rows.discard()

    def _samples(self, start: int, count: int) -> tuple[Sample, ...]:
        images = self._sampling.images_per_prompt
        first, stop = start // images, start + count
        rows = self._rows.read(first, -(-stop // images) - first)
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
    store: Store | None = None,
    role: Role = "alone",
    held_bytes: int = HELD_BYTES,
    before_copying: Callable[[], None] = lambda: None,
) -> Plan:
    """Reads and checks every prompt table.

    Tables of ``held_bytes`` and less are held in memory, and ``content`` is the SHA-256 of their rows and their columns' types,
    which the metadata of all shards must share. Of larger ones only keys, seeds and what the footers of Parquet files leave open
    are read; text formats are copied into Parquet once. Their ``content`` covers each file's bytes (decompressed), format and row
    count, the columns chosen and, where keys are made from it, the name: what is equal in it has equal rows, but a table that was
    written again, in another format or split otherwise, counts as another one. What can't be read of a row in a large Parquet
    file, such as text that is not UTF-8, is found when its shard is read: its samples then have an ``error``. Keys are checked
    before.

    Args:
        data: Which tables.
        sampling: Images per prompt, the job's seed and the default negative prompt.
        shard_size: Images in a shard.
        store: Where what was found out about large tables is kept for other ranks and later runs; None: nowhere.
        role: This rank's part in that, see ``Role``.
        held_bytes: Bytes of tables that may be held in memory, as files (compressed ones count several times; those of unknown
            size never are).
        before_copying: Called before large tables are made ready, which may take hours, where that was not done before; what it
            raises ends the planning.

    Raises:
        UsageError: Anything about the tables is not allowed; names the file and row.
    """
    request = Request(find_sources(data.prompts), data, sampling.images_per_prompt)
    held = weight(request.sources) <= held_bytes
    return Plan(HeldRows(request) if held else stream(request, store, role, before_copying), sampling, shard_size)
