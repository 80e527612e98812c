"""Which rows of a batch are drawn again, and which are given up."""

from dataclasses import replace

from hybridiff.corpus.shard import Result
from hybridiff.prompts.rows import Sample
from hybridiff.runner.failed_rows import DrawFailed, draw_around_failures, failed


def samples(keys: str) -> tuple[Sample, ...]:
    return tuple(Sample(key, key, None, 0, {}) for key in keys)


class Pipeline:
    """Raises for R, fails alone on F, and spoils the whole batch with S."""

    def __init__(self) -> None:
        self.drawn: list[str] = []

    def draw(self, batch: tuple[Sample, ...]) -> list[Result]:
        keys = "".join(sample.key for sample in batch)
        self.drawn.append(keys)
        if "R" in keys:
            raise DrawFailed("raised")
        return [failed(sample, "spoilt" if sample.key in "FS" or "S" in keys else "") for sample in batch]


def outcome(keys: str) -> tuple[dict[str, str | None], list[str]]:
    pipeline = Pipeline()

    def draw(batch: tuple[Sample, ...]) -> list[Result]:
        return [Result(r.sample, None, r.error or None, False, 0, 0, 0, None, None, []) for r in pipeline.draw(batch)]

    results = draw_around_failures(samples(keys), draw)
    assert "".join(result.sample.key for result in results) == keys
    return {result.sample.key: result.error for result in results}, pipeline.drawn


def test_a_row_that_could_not_be_read_is_not_drawn() -> None:
    a, b, c = samples("abc")
    drawn: list[str] = []

    def draw(batch: tuple[Sample, ...]) -> list[Result]:
        drawn.append("".join(sample.key for sample in batch))
        return [Result(sample, None, None, False, 0, 0, 0, None, None, []) for sample in batch]

    results = draw_around_failures((a, replace(b, error="not UTF-8"), c), draw)
    assert [(result.sample.key, result.error) for result in results] == [("a", None), ("b", "not UTF-8"), ("c", None)]
    assert draw_around_failures((replace(a, error="not UTF-8"),), draw)[0].error == "not UTF-8"
    assert drawn == ["ac"]


def test_a_sound_batch_is_drawn_once() -> None:
    assert outcome("abcd") == (dict.fromkeys("abcd"), ["abcd"])


def test_a_batch_that_raises_is_halved_until_the_row_is_alone() -> None:
    assert outcome("abRd") == ({"a": None, "b": None, "R": "raised", "d": None}, ["abRd", "ab", "Rd", "R", "d"])


def test_mates_of_a_row_that_failed_are_drawn_without_it() -> None:
    assert outcome("aFb") == ({"a": None, "F": "spoilt", "b": None}, ["aFb", "ab"])


def test_a_row_that_spoils_all_is_found() -> None:
    assert outcome("aSb") == ({"a": None, "S": "spoilt", "b": None}, ["aSb", "a", "Sb", "S", "b"])


def test_a_row_alone_is_not_drawn_again() -> None:
    assert outcome("F") == ({"F": "spoilt"}, ["F"])
