"""Isolation of failing rows."""

from dataclasses import replace

from hybridiff.corpus.shard import Result
from hybridiff.parallel.guard import BatchFailed
from hybridiff.prompts.rows import Sample
from hybridiff.runner.module import failed_result, generate_isolated


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

    results = generate_isolated(samples(keys), generate)
    assert "".join(result.sample.key for result in results) == keys
    return {result.sample.key: result.error for result in results}, pipeline.batches


def test_an_unreadable_row_is_not_generated() -> None:
    a, b, c = samples("abc")
    batches: list[str] = []

    def generate(batch: tuple[Sample, ...]) -> list[Result]:
        batches.append("".join(sample.key for sample in batch))
        return [Result(sample, None, None, False, 0, 0, 0, None, None, []) for sample in batch]

    results = generate_isolated((a, replace(b, error="not UTF-8"), c), generate)
    assert [(result.sample.key, result.error) for result in results] == [("a", None), ("b", "not UTF-8"), ("c", None)]
    assert generate_isolated((replace(a, error="not UTF-8"),), generate)[0].error == "not UTF-8"
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
