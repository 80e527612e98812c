"""Results reach the corpus, and callbacks that take them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import Callback

from hybridiff.corpus import Corpus, Result, ShardWriter
from hybridiff.runner.data import PromptBatch
from hybridiff.runner.writer import CorpusWriter, OnResult
from tests.corpus.corpora import PNG, RUN_VALUES, USER_SCHEMA, record, result


class Brightness(Callback):
    """A callback of the user's own."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, float | None]] = []

    def on_result(self, result: Result) -> None:
        self.seen.append((result.sample.key, None if result.image is None else float(result.image.mean())))


class Failing(Callback):
    def on_result(self, result: Result) -> None:
        raise RuntimeError(f"cannot use {result.sample.key}")


def trainer_of(leader: bool, *callbacks: Callback) -> Any:
    group = SimpleNamespace(leader=leader, index=0, count=1, size=1)
    return SimpleNamespace(strategy=SimpleNamespace(group=group), callbacks=callbacks, loggers=[])


def write(corpus: Corpus, trainer: Any, results: list[Result]) -> None:
    writer = CorpusWriter(lambda index: ShardWriter(corpus, index, RUN_VALUES, USER_SCHEMA, PNG), PNG)
    batch = PromptBatch(0, tuple(one.sample for one in results), last=True)
    writer.on_predict_start(trainer, SimpleNamespace())  # type: ignore[arg-type]
    try:
        writer.on_predict_batch_start()
        writer.write_on_batch_end(trainer, SimpleNamespace(), results, None, batch, 0, 0)  # type: ignore[arg-type]
        writer.on_predict_end(trainer, SimpleNamespace())  # type: ignore[arg-type]
    except BaseException as error:
        writer.on_exception(trainer, SimpleNamespace(), error)  # type: ignore[arg-type]
        raise


@pytest.mark.parametrize("leader", [True, False])
def test_each_result_comes_once_and_in_order_on_the_first_rank_of_a_group(tmp_path: Path, leader: bool) -> None:
    corpus, brightness = Corpus(str(tmp_path)), Brightness()
    corpus.start_run(record())
    results = [result(0), result(1, failed=True), result(2)]
    write(corpus, trainer_of(leader, Callback(), brightness), results)
    expected = [(one.sample.key, None if one.image is None else float(one.image.mean())) for one in results]
    assert brightness.seen == (expected if leader else []) and corpus.committed() == ({0} if leader else set())
    assert isinstance(brightness, OnResult) and not isinstance(Callback(), OnResult)


def test_a_callback_that_fails_ends_the_run(tmp_path: Path) -> None:
    corpus = Corpus(str(tmp_path))
    with pytest.raises(RuntimeError, match="cannot use ключ-0000"):
        write(corpus, trainer_of(True, Failing()), [result(0)])
