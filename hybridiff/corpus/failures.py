"""What the committed shards of a corpus count, and which of their rows failed."""

from collections.abc import Iterable
from functools import partial

import pyarrow.parquet as pq

from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.damage import ShardDamaged, damaged, reading
from hybridiff.corpus.names import marker_counts, marker_name, metadata_name
from hybridiff.storage.folder import read_each


def totals(corpus: Corpus, indices: Iterable[int]) -> dict[str, int]:
    """The sums of ``rows``, ``ok`` and ``failed`` over the markers of these shards.

    Raises:
        ShardDamaged: If one of them is damaged.
    """
    counts, broken = _counts(corpus, indices)
    for damage in broken.values():
        raise damage
    return {name: sum(count[name] for count in counts.values()) for name in ("rows", "ok", "failed")}


def with_failures(corpus: Corpus, indices: Iterable[int]) -> tuple[dict[int, int], dict[int, ShardDamaged]]:
    """Those of these committed shards that have failed rows, in order, and how many; and those whose markers are damaged."""
    counts, broken = _counts(corpus, indices)
    return {index: count["failed"] for index, count in counts.items() if count["failed"]}, broken


def failed_keys(corpus: Corpus, index: int) -> frozenset[str]:
    """The keys of the failed rows of a committed shard.

    Raises:
        ShardDamaged: If its rows are damaged or missing.
    """
    name = metadata_name(index)
    with reading(corpus, index, name), corpus.fs.open(corpus.path(name), "rb") as handle:
        rows = pq.read_table(handle, columns=["key", "status"]).to_pylist()
    return frozenset(row["key"] for row in rows if row["status"] == "error")


def _counts(corpus: Corpus, indices: Iterable[int]) -> tuple[dict[int, dict[str, int]], dict[int, ShardDamaged]]:
    found = read_each(partial(_count, corpus), sorted(indices))
    counts = {index: one for index, one in found.items() if not isinstance(one, ShardDamaged)}
    return counts, {index: one for index, one in found.items() if isinstance(one, ShardDamaged)}


def _count(corpus: Corpus, index: int) -> dict[str, int] | ShardDamaged:
    try:
        return marker_counts(corpus.read_marker(index), index)
    except ValueError as error:
        return damaged(corpus, marker_name(index), error)
