"""Shards that a group acquires one after another, and what ends that."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hybridiff.cluster.signals import StopSignals
from hybridiff.config import DataConfig, SamplingConfig
from hybridiff.corpus import Corpus, Result, ShardWriter
from hybridiff.corpus.layout import LEASES, lease_of
from hybridiff.corpus.record import RunRecord
from hybridiff.parallel import Group
from hybridiff.prompts.plan import make_plan
from hybridiff.runner.data import PromptBatch, ShardData
from hybridiff.runner.stopping import Stopping, Vote
from hybridiff.storage.lease import Leases
from tests.corpus.corpora import PNG, RUN_VALUES, result
from tests.storage.leases import Clock, leases

ROWS, SHARD, BATCH = 8, 4, 2


class Generating:
    """A group of one that acquires shards of a corpus."""

    def __init__(self, directory: Path, index: int = 0, count: int = 1, rows: int = ROWS, **given: Any) -> None:
        (directory / "prompts.txt").write_text("".join(f"prompt {row}\n" for row in range(rows)))
        self.plan = make_plan(DataConfig([str(directory / "prompts.txt")]), SamplingConfig(), SHARD)
        self.corpus = Corpus(str(directory / "corpus"))
        self.signals = StopSignals()
        is_done = (lambda _: False) if given.get("retry_failed") else self.corpus.is_committed
        self.leases = Leases(self.corpus, LEASES, 60.0, is_done=is_done, sleep=self.signals.sleep)
        self.data = ShardData(self.plan, self.corpus, BATCH, **{"leases": self.leases, "signals": self.signals, **given})
        group = Group(1, 0, index, count)
        strategy = SimpleNamespace(is_global_zero=True, group=group, broadcast=lambda pending: pending)
        self.data.trainer = SimpleNamespace(strategy=strategy)  # type: ignore[assignment]
        self.stopping = Stopping(self.signals, 60.0, 0.0, rows)

    def batches(self) -> Iterator[PromptBatch]:
        self.data.setup("predict")
        iterator = iter(self.data.predict_dataloader())
        self.data.stopping = self.stopping
        return iterator

    def step(self, batch: PromptBatch) -> bool:
        return self.stopping.decide(Vote(self.stopping.vote(batch.first, batch.left)), batch.first)

    def commit(self, index: int, *failed: int) -> None:
        """Commits a shard some of whose rows have failed, and releases it."""
        writer = ShardWriter(self.corpus, index, RUN_VALUES, self.plan.user_schema, PNG)
        for place, sample in enumerate(self.plan.shard(index).samples):
            error = Result(sample, None, "out of memory", False, 0, 0, 0, None, None, [])
            writer.write(error if place in failed else replace(result(0), sample=sample))
        writer.commit({})
        self.leases.release(lease_of(index))

    def all(self) -> list[int]:
        """Acquires all there is, committing each shard when it is complete."""
        for batch in self.batches():
            assert self.step(batch)
            if batch.last:
                self.commit(batch.shard)
        return self.data.shards


@pytest.fixture
def generating(tmp_path: Path) -> Generating:
    return Generating(tmp_path)


def test_without_a_signal_all_shards_are_generated_in_order(generating: Generating) -> None:
    batches = [(batch.shard, batch.first, batch.last, batch.left, generating.step(batch)) for batch in generating.batches()]
    assert batches == [(index, first, not first, 1 + first, True) for index in (0, 1) for first in (True, False)]
    assert generating.data.shards == [0, 1] and not generating.data.stopped
    assert generating.leases.held == {lease_of(0), lease_of(1)}


@pytest.mark.parametrize(("index", "first"), [(0, 0), (1, 2), (2, 5)])
def test_a_group_begins_at_its_own_place_and_takes_all_that_others_leave(tmp_path: Path, index: int, first: int) -> None:
    one = Generating(tmp_path, index, 3, rows=8 * SHARD)
    assert one.all() == [(first + n) % 8 for n in range(8)]
    assert one.corpus.committed() == set(range(8)) and one.corpus.names(LEASES) == []


def test_groups_share_what_is_left_and_none_generates_what_another_does(tmp_path: Path) -> None:
    groups = [Generating(tmp_path, index, 2, rows=8 * SHARD) for index in range(2)]
    groups[0].commit(0)
    streams = [group.batches() for group in groups]
    for _ in range(3):
        for group, stream in zip(groups, streams, strict=True):
            batch = next(stream)
            next(stream)
            group.commit(batch.shard)
    assert [group.data.shards for group in groups] == [[1, 2, 3], [4, 5, 6]]
    assert groups[0].data.images == 4 * SHARD and groups[1].data.images == 3 * SHARD, "the even share"


def test_where_storage_has_no_leases_groups_have_shards_of_their_own(tmp_path: Path) -> None:
    groups = [Generating(tmp_path, index, 2, rows=8 * SHARD, leases=None) for index in range(2)]
    streams = [group.batches() for group in groups]
    assert [[batch.shard for batch in stream if batch.last] for stream in streams] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert groups[0].corpus.names(LEASES) == []


def test_without_leases_a_signal_ends_it_too(tmp_path: Path) -> None:
    one = Generating(tmp_path, leases=None)
    batches = one.batches()
    assert one.step(next(batches))
    one.signals.received, one.signals.since = "SIGTERM", 1e12
    assert one.step(next(batches)) and list(batches) == [] and one.data.stopped and one.data.shards == [0]


def test_after_a_signal_an_acquired_shard_is_not_begun(generating: Generating) -> None:
    batches = generating.batches()
    first = next(batches)
    generating.signals.received = "SIGTERM"
    generating.signals.since = 1e12  # grace without end
    assert not generating.step(first)
    assert list(batches) == [] and generating.data.stopped


def test_a_signal_within_a_shard_lets_it_finish_and_acquires_no_other(generating: Generating) -> None:
    batches = generating.batches()
    assert generating.step(next(batches))
    generating.signals.received, generating.signals.since = "SIGTERM", 1e12
    last = next(batches)
    assert generating.step(last) and last.last
    assert list(batches) == [] and generating.data.stopped and generating.leases.held == {lease_of(last.shard)}


def test_a_signal_while_others_are_watched_ends_the_wait(generating: Generating) -> None:
    other = leases(generating.corpus, "other", Clock(), is_done=generating.corpus.is_committed)
    assert other.acquire(lease_of(0)) and other.acquire(lease_of(1))
    generating.signals.received = "SIGTERM"
    assert list(generating.batches()) == []
    assert generating.data.shards == [] and generating.data.stopped


def test_too_many_failed_rows_acquire_no_further_shard(generating: Generating) -> None:
    for batch in generating.batches():
        assert generating.step(batch)
        generating.stopping.count(BATCH, int(batch.last), 0.1)
    assert len(generating.data.shards) == 1 and generating.data.stopped and generating.signals.received is None


def test_storage_that_fails_the_leader_is_not_taken_for_the_end(generating: Generating, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise OSError("503 Slow Down")

    batches = generating.batches()
    assert generating.step(next(batches)) and generating.step(next(batches))
    monkeypatch.setattr(generating.leases, "acquire_next", fail)
    with pytest.raises(OSError, match="503"):
        next(batches)


@pytest.mark.parametrize(("failures", "ends"), [(2, False), (3, True)])
def test_storage_that_is_away_for_a_while_is_asked_again_as_often_as_shards_may_be_lost_in_a_row(
    generating: Generating, monkeypatch: pytest.MonkeyPatch, failures: int, ends: bool
) -> None:
    real, left = generating.leases.acquire_next, [OSError("503 Slow Down")] * failures

    def fail_first(*given: Any) -> str | None:
        if left:
            raise left.pop()
        return real(*given)

    monkeypatch.setattr(generating.leases, "acquire_next", fail_first)
    monkeypatch.setattr(generating.corpus, "is_transient", lambda error: "503" in str(error))
    with pytest.raises(OSError, match="503") if ends else nullcontext():
        assert [batch.shard for batch in generating.batches()] == [0, 0, 1, 1]


def test_nothing_is_acquired_where_the_output_was_removed(generating: Generating) -> None:
    generating.corpus.start_run(RunRecord({}, {}))
    batches = generating.batches()
    next(batches), next(batches)
    generating.corpus.fs.rm(generating.corpus.root, recursive=True)
    generating.leases._listed = 0.0
    with pytest.raises(FileNotFoundError, match="was removed during the run"):
        next(batches)


def test_a_groups_share_counts_all_rows_of_the_job_whatever_is_left(tmp_path: Path) -> None:
    assert Generating(tmp_path, 0, 3).data.share == 3, "of 8 rows in 3 groups"


def retrying(directory: Path) -> Generating:
    one = Generating(directory, rows=3 * SHARD, retry_failed=True)
    one.corpus.start_run(RunRecord({}, {}))
    one.commit(0, 1)
    one.commit(1)
    one.commit(2, 0, 3)
    return one


def test_of_committed_shards_the_failed_rows_are_retried_under_a_lease(tmp_path: Path) -> None:
    one = retrying(tmp_path)
    retried = []
    for batch in one.batches():
        assert one.step(batch) and one.leases.held == {lease_of(batch.shard)}
        retried.append((batch.shard, [sample.key for sample in batch.samples], batch.last))
        one.leases.release(lease_of(batch.shard))
    samples = {index: one.plan.shard(index).samples for index in (0, 2)}
    assert retried == [(0, [samples[0][1].key], True), (2, [samples[2][0].key, samples[2][3].key], True)]
    assert one.data.images == 3


def test_a_marker_that_another_run_is_rewriting_while_they_are_listed_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = retrying(tmp_path)
    moments = [one.corpus.commit_times() | {1: one.corpus.commit_times()[0], 7: one.corpus.commit_times()[0]}]
    one.plan.shards = 8
    real = one.corpus.commit_times
    monkeypatch.setattr(one.corpus, "commit_times", lambda: moments.pop() if moments else real())
    assert [batch.shard for batch in one.batches()] == [0, 2] and moments == []


def test_a_shard_that_another_run_retried_meanwhile_is_left_alone(tmp_path: Path) -> None:
    one = retrying(tmp_path)
    batches = one.batches()
    assert next(batches).shard == 0
    one.leases.release(lease_of(0))
    one.commit(2, 3)
    assert list(batches) == [] and one.leases.held == frozenset() and one.corpus.names(LEASES) == []


def test_a_shard_that_another_run_is_retrying_is_waited_for_and_left_to_it(tmp_path: Path) -> None:
    one, clock = retrying(tmp_path), Clock()
    other = leases(one.corpus, "other", clock)
    assert other.acquire(lease_of(2))

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        other.renew()

    one.leases.sleep, one.leases.clock = sleep, clock
    assert [batch.shard for batch in one.batches()] == [0] and one.data.shards == [0]
