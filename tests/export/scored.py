"""A small corpus with scores, for the tests of this room."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hybridiff.corpus import Corpus
from hybridiff.corpus.layout import metadata_name
from tests.corpus.corpora import PER_SHARD, SHARDS, make_corpus

FAILED_ROWS = {2, 6, 10}
NO_SCORE, DUPLICATE = 4, 5  # rows without a clip score, and with an earlier equal


def rows(corpus: Corpus) -> list[dict[str, Any]]:
    """All rows of a corpus, in order."""
    return [row for index in sorted(corpus.committed()) for row in pq.read_table(corpus.path(metadata_name(index))).to_pylist()]


def score(corpus: Corpus, name: str = "scores", **changed: list[Any]) -> None:
    """Writes an evaluation: clip grows with the row from 0 to 11/12, nsfw falls from 0.11 to 0."""
    keys, count = [row["key"] for row in rows(corpus)], SHARDS * PER_SHARD
    columns: dict[str, list[Any]] = {
        "key": keys,
        "shard": [row // PER_SHARD for row in range(count)],
        "clip": [None if row in {NO_SCORE, *FAILED_ROWS} else row / 12 for row in range(count)],
        "nsfw": [(11 - row) / 100 for row in range(count)],
        "duplicate": [row == DUPLICATE for row in range(count)],
    }
    path = Path(corpus.path(f"evaluation/{name}.parquet"))
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns | changed), path)


def scored_corpus(path: Path, image_format: str = "png") -> Corpus:
    """A whole corpus of 12 rows, three of which failed, with scores."""
    corpus = make_corpus(str(path), image_format)
    score(corpus)
    return corpus
