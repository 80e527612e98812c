"""Shards that a group claims one after another, and what ends that."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hybridiff.cluster.signals import StopSignals
from hybridiff.config import DataConfig, SamplingConfig
from hybridiff.corpus import Corpus
from hybridiff.corpus.claimed import at_work
from hybridiff.corpus.claims import Claims
from hybridiff.parallel import Group
from hybridiff.prompts.plan import make_plan
from hybridiff.runner.batches import PromptBatch
from hybridiff.runner.claimed_data import ClaimedData
from hybridiff.runner.stopping import Stopping, Vote

ROWS, SHARD, BATCH = 8, 4, 2


class Drawing:
    """A group of one that claims shards of a corpus."""

    def __init__(self, directory: Path) -> None:
        (directory / "prompts.txt").write_text("".join(f"prompt {row}\n" for row in range(ROWS)))
        plan = make_plan(DataConfig([str(directory / "prompts.txt")]), SamplingConfig(), SHARD)
        self.corpus = Corpus(str(directory / "corpus"))
        self.signals = StopSignals()
        self.claims = Claims(self.corpus, plan.shards, 60.0, "one", sleep=self.signals.sleep)
        self.data = ClaimedData(plan, self.corpus, BATCH, self.claims, self.signals)
        strategy = SimpleNamespace(is_global_zero=True, group=Group(), broadcast=lambda pending: pending)
        self.data.trainer = SimpleNamespace(strategy=strategy)  # type: ignore[assignment]
        self.stopping = Stopping(self.signals, 60.0, 0.0, ROWS)

    def batches(self) -> Any:
        self.data.setup("predict")
        iterator = iter(self.data.predict_dataloader())
        self.data.stopping = self.stopping
        return iterator

    def step(self, batch: PromptBatch) -> bool:
        return self.stopping.decide(Vote(self.stopping.vote(batch.first, batch.left)), batch.first)


@pytest.fixture
def drawing(tmp_path: Path) -> Drawing:
    return Drawing(tmp_path)


def test_without_a_signal_all_shards_are_drawn(drawing: Drawing) -> None:
    drawn = [(batch.shard, drawing.step(batch)) for batch in drawing.batches()]
    assert drawn == [(index, True) for index in drawing.data.shards for _ in range(SHARD // BATCH)]
    assert sorted(drawing.data.shards) == [0, 1] and not drawing.data.stopped


def test_after_a_signal_a_claimed_shard_is_not_begun(drawing: Drawing) -> None:
    batches = drawing.batches()
    first = next(batches)
    drawing.signals.received = "SIGTERM"
    drawing.signals.since = 1e12  # grace without end
    assert not drawing.step(first)
    assert list(batches) == [] and drawing.data.stopped


def test_a_signal_within_a_shard_lets_it_finish_and_claims_no_other(drawing: Drawing) -> None:
    batches = drawing.batches()
    assert drawing.step(next(batches))
    drawing.signals.received, drawing.signals.since = "SIGTERM", 1e12
    last = next(batches)
    assert drawing.step(last) and last.last
    assert list(batches) == [] and drawing.data.stopped and drawing.claims.held == {last.shard}
    drawing.claims.release_all()
    assert at_work(drawing.corpus) == []


def test_a_signal_while_others_are_watched_ends_the_wait(drawing: Drawing) -> None:
    other = Claims(drawing.corpus, 2, 60.0, "two")
    assert {other.draw(), other.draw()} == {0, 1}
    drawing.signals.received = "SIGTERM"
    assert list(drawing.batches()) == []
    assert drawing.data.shards == [] and drawing.data.stopped


def test_too_many_failed_rows_claim_no_further_shard(drawing: Drawing) -> None:
    for batch in drawing.batches():
        assert drawing.step(batch)
        drawing.stopping.count(BATCH, int(batch.last), 0.1)
    assert len(drawing.data.shards) == 1 and drawing.data.stopped and drawing.signals.received is None


def test_storage_that_fails_the_leader_is_not_taken_for_the_end(drawing: Drawing, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> int:
        raise OSError("503 Slow Down")

    batches = drawing.batches()
    assert drawing.step(next(batches)) and drawing.step(next(batches))
    monkeypatch.setattr(drawing.claims, "draw", fail)
    with pytest.raises(OSError, match="503"):
        next(batches)


def test_a_groups_share_counts_all_rows_of_the_job_whatever_is_left(drawing: Drawing) -> None:
    drawing.data.part = (0, 3)
    assert drawing.data.share == 3, "of 8 rows in 3 parts"
