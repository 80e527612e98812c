"""Isolation of failing rows."""

from dataclasses import replace

import pytest

from hybridiff.corpus.shard import Result
from hybridiff.parallel.guard import BatchFailed, OutOfMemory
from hybridiff.prompts.rows import Sample
from hybridiff.runner.module import MemoryLimit, failed_result, generate_isolated

KEPT = "fit in memory and are used from now on; larger ones run out of it"


def samples(keys: str) -> tuple[Sample, ...]:
    return tuple(Sample(key, key, None, 0, {}) for key in keys)


class Pipeline:
    """Raises for R, fails alone on F, and spoils the whole batch with S."""

    def __init__(self) -> None:
        self.batches: list[str] = []

    def generate(self, batch: tuple[Sample, ...]) -> list[Result]:
        keys = "".join(sample.key for sample in batch)
        self.batches.append(keys)
        if "R" in keys:
            raise BatchFailed("raised")
        return [failed_result(sample, "spoilt" if sample.key in "FS" or "S" in keys else "") for sample in batch]


def outcome(keys: str) -> tuple[dict[str, str | None], list[str]]:
    pipeline = Pipeline()

    def generate(batch: tuple[Sample, ...]) -> list[Result]:
        return [Result(r.sample, None, r.error or None, False, 0, 0, 0, None, None, []) for r in pipeline.generate(batch)]

    results = generate_isolated(samples(keys), generate, MemoryLimit())
    assert "".join(result.sample.key for result in results) == keys
    return {result.sample.key: result.error for result in results}, pipeline.batches


def test_an_unreadable_row_is_not_generated() -> None:
    a, b, c = samples("abc")
    batches: list[str] = []

    def generate(batch: tuple[Sample, ...]) -> list[Result]:
        batches.append("".join(sample.key for sample in batch))
        return [Result(sample, None, None, False, 0, 0, 0, None, None, []) for sample in batch]

    results = generate_isolated((a, replace(b, error="not UTF-8"), c), generate, MemoryLimit())
    assert [(result.sample.key, result.error) for result in results] == [("a", None), ("b", "not UTF-8"), ("c", None)]
    (alone,) = generate_isolated((replace(a, error="not UTF-8"),), generate, MemoryLimit())
    assert alone.error == "not UTF-8"
    assert batches == ["ac"]


def test_a_batch_without_failures_is_generated_once() -> None:
    assert outcome("abcd") == (dict.fromkeys("abcd"), ["abcd"])


def test_a_batch_that_raises_is_halved_until_the_row_is_alone() -> None:
    assert outcome("abRd") == ({"a": None, "b": None, "R": "raised", "d": None}, ["abRd", "ab", "Rd", "R", "d"])


def test_other_rows_are_generated_without_a_failed_one() -> None:
    assert outcome("aFb") == ({"a": None, "F": "spoilt", "b": None}, ["aFb", "ab"])


def test_a_row_that_affects_all_is_found() -> None:
    assert outcome("aSb") == ({"a": None, "S": "spoilt", "b": None}, ["aSb", "a", "Sb", "S", "b"])


def test_a_single_row_is_not_retried() -> None:
    assert outcome("F") == ({"F": "spoilt"}, ["F"])


class SmallMemory:
    """Holds so many rows at once, and of M none."""

    def __init__(self, rows: int) -> None:
        self.rows, self.limit = rows, MemoryLimit()
        self.batches: list[str] = []

    def generate(self, batch: tuple[Sample, ...]) -> list[Result]:
        keys = "".join(sample.key for sample in batch)
        self.batches.append(keys)
        if len(batch) > self.rows or "M" in keys:
            raise OutOfMemory("tried to allocate 40 GiB")
        return [Result(sample, None, None, False, 0, 0, 0, None, None, []) for sample in batch]

    def outcome(self, keys: str) -> tuple[list[str | None], list[str]]:
        self.batches = []
        results = generate_isolated(samples(keys), self.generate, self.limit)
        assert "".join(result.sample.key for result in results) == keys
        return [result.error for result in results], self.batches


def test_a_batch_that_runs_out_of_memory_is_halved_and_the_size_that_fits_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    memory = SmallMemory(2)
    assert memory.outcome("abcdefgh") == ([None] * 8, ["abcdefgh", "abcd", "ab", "cd", "ef", "gh"])
    assert memory.outcome("abcdefgh") == ([None] * 8, ["ab", "cd", "ef", "gh"])
    assert memory.outcome("abc") == ([None] * 3, ["a", "bc"])
    assert caplog.messages == [f"batches of 2 images {KEPT}"]
    memory.rows = 1
    assert memory.outcome("abcd") == ([None] * 4, ["ab", "a", "b", "c", "d"])
    assert memory.outcome("ab") == ([None] * 2, ["a", "b"])
    assert caplog.messages[1:] == [f"batches of 1 image {KEPT}"]


def test_a_row_that_alone_runs_out_of_memory_does_not_lower_the_limit() -> None:
    memory = SmallMemory(4)
    error = "tried to allocate 40 GiB"
    assert memory.outcome("aMcd") == ([None, error, None, None], ["aMcd", "aM", "a", "M", "cd"])
    assert memory.limit.images is None and memory.outcome("abcd") == ([None] * 4, ["abcd"])


def test_no_batch_fits() -> None:
    memory = SmallMemory(0)
    assert memory.outcome("ab") == (["tried to allocate 40 GiB"] * 2, ["ab", "a", "b"]) and memory.limit.images is None


def test_only_one_rank_of_a_group_logs_the_size(caplog: pytest.LogCaptureFixture) -> None:
    MemoryLimit(quiet=True).lower(2)
    assert caplog.messages == []
