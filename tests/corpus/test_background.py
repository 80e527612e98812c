"""Writing behind the caller's back: in order, within bounds, and never a shard that lacks a batch."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from hybridiff.corpus.background import BackgroundWriter
from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.shard import Result, ShardWriter
from hybridiff.prompts.rows import Sample
from tests.corpus.corpora import PNG, RUN_VALUES


def results(*keys: str) -> list[Result]:
    image = np.zeros((8, 8, 3), np.uint8)
    return [Result(Sample(key, key, None, 0, {}), image, None, False, 1, 0, 0, None, None, [0.5]) for key in keys]


class Shards:
    """Opens real shards; a result with the key "bad" fails, and the gate holds every write back until it is opened."""

    def __init__(self, url: Path) -> None:
        self.corpus = Corpus(str(url))
        self.gate = threading.Event()
        self.written: list[str] = []

    def open(self, index: int) -> ShardWriter:
        self.gate.wait(30)
        writer = ShardWriter(self.corpus, index, RUN_VALUES, pa.schema([]), PNG)
        write = writer.write

        def recorded(result: Result, encoded: bytes | None = None, sha256: str | None = None) -> None:
            if result.sample.key == "bad":
                raise OSError("no space left")
            self.written.append(result.sample.key)
            write(result, encoded, sha256)

        writer.write = recorded  # type: ignore[method-assign]
        return writer


def put(writer: BackgroundWriter, shard: int, *keys: str, last: bool = False) -> None:
    timings: dict[str, Any] = {}
    writer.put(shard, results(*keys), last, timings)


def test_batches_are_written_in_order_and_shards_committed(tmp_path: Path) -> None:
    shards = Shards(tmp_path)
    shards.gate.set()
    writer = BackgroundWriter(shards.open, PNG)
    put(writer, 0, "a", "b")
    put(writer, 0, "c", last=True)
    put(writer, 3, "d", last=True)
    writer.close()
    assert shards.written == ["a", "b", "c", "d"]
    assert shards.corpus.committed() == {0, 3}
    assert shards.corpus.read_marker(0)["rows"] == 3


def test_a_shard_that_lacks_a_batch_is_never_committed(tmp_path: Path) -> None:
    shards = Shards(tmp_path)
    writer = BackgroundWriter(shards.open, PNG)
    put(writer, 0, "a")
    put(writer, 0, "bad")
    put(writer, 0, "c", last=True)
    shards.gate.set()
    with pytest.raises(OSError, match="no space left"):
        put(writer, 1, "d", last=True)
    writer.abort()
    assert shards.written == ["a"]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_caller_waits_when_too_much_is_behind(tmp_path: Path) -> None:
    shards = Shards(tmp_path)
    writer = BackgroundWriter(shards.open, PNG, depth=2)
    put(writer, 0, "a")
    put(writer, 0, "b")
    third = threading.Thread(target=put, args=(writer, 0, "c"), kwargs={"last": True})
    third.start()
    third.join(0.2)
    assert third.is_alive()
    shards.gate.set()
    third.join(30)
    writer.close()
    assert shards.corpus.committed() == {0}


def test_the_first_batch_of_a_shard_waits_for_the_shard_before(tmp_path: Path) -> None:
    shards = Shards(tmp_path)
    writer = BackgroundWriter(shards.open, PNG, depth=9)
    put(writer, 0, "a")
    put(writer, 0, "b", last=True)
    following = threading.Thread(target=put, args=(writer, 1, "c"))
    following.start()
    following.join(0.2)
    assert following.is_alive() and shards.corpus.committed() == set()
    shards.gate.set()
    following.join(30)
    assert shards.corpus.committed() == {0}, "one more is behind only when the one before is committed"
    put(writer, 1, "d", last=True)
    writer.close()
    assert shards.corpus.committed() == {0, 1}


def test_a_shard_that_was_lost_is_given_up_and_the_next_is_written(tmp_path: Path) -> None:
    shards = Shards(tmp_path)
    shards.gate.set()
    writer = BackgroundWriter(shards.open, PNG, is_transient=lambda _: True)
    put(writer, 0, "a")
    put(writer, 0, "bad")
    put(writer, 0, "c", last=True)
    put(writer, 1, "d")
    assert writer.given_up(0) and not writer.given_up(1)
    put(writer, 1, "e", last=True)
    writer.close()
    assert shards.corpus.committed() == {1} and shards.written == ["a", "d", "e"]


def test_abort_leaves_nothing(tmp_path: Path) -> None:
    shards = Shards(tmp_path)
    shards.gate.set()
    writer = BackgroundWriter(shards.open, PNG)
    put(writer, 0, "a")
    writer.abort()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
