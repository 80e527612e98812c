"""When a group stops: by signals, and by failed rows."""

import time

import pytest

from hybridiff.cluster.signals import StopSignals
from hybridiff.runner.stopping import Stopping, Vote


def stopping(grace_s: float = 60.0, fraction: float = 0.1, rows: int = 1000) -> Stopping:
    return Stopping(StopSignals(), grace_s, fraction, rows)


def signalled(one: Stopping, ago_s: float = 0.0) -> Stopping:
    one.signals.received, one.signals.since = "SIGTERM", time.monotonic() - ago_s
    return one


def test_nothing_stops_a_run_that_nobody_asked_to() -> None:
    one = stopping()
    assert one.vote(opens=True, batches_left=9) is Vote.GO_ON
    assert one.decide(Vote.GO_ON, opens=True) and not one.stopped


def test_a_shard_is_finished_if_the_time_will_do_and_no_other_is_opened() -> None:
    one = signalled(stopping(grace_s=60), ago_s=10)
    one.count(4, 0, seconds=9.0)
    assert one.vote(opens=False, batches_left=5) is Vote.FINISH_SHARD
    assert one.vote(opens=False, batches_left=6) is Vote.STOP
    assert one.vote(opens=True, batches_left=1) is Vote.STOP


def test_the_rank_that_was_not_asked_does_as_its_group() -> None:
    one = stopping()
    assert one.decide(Vote.FINISH_SHARD, opens=False) and not one.stopped
    assert not one.decide(Vote.FINISH_SHARD, opens=True) and one.stopped
    assert not one.decide(Vote.GO_ON, opens=True), "what was stopped stays so"
    other = stopping()
    assert not other.decide(Vote.STOP, opens=False) and other.stopped


def test_a_group_leaves_a_shard_that_one_of_its_ranks_cannot_write() -> None:
    one = stopping()
    assert one.vote(opens=False, batches_left=9, lost=True) is Vote.LEAVE_SHARD
    assert not one.decide(Vote.LEAVE_SHARD, opens=False) and not one.stopped and not one.ending
    assert one.decide(Vote.GO_ON, opens=True), "the next shard is generated"
    assert signalled(stopping()).vote(opens=False, batches_left=1, lost=True) is Vote.LEAVE_SHARD, "nothing is left to finish"


def test_rows_that_failed_before_are_all_tried_again_whatever_fails() -> None:
    one = Stopping(StopSignals(), 60.0, 0.1, rows=40, tries_all=True)
    one.count(5, 5, seconds=1.0)
    assert one.too_many_failed and one.vote(opens=True, batches_left=1) is Vote.GO_ON and not one.ending


@pytest.mark.parametrize(
    ("fraction", "rows", "generated", "failed", "stops"),
    [
        (0.1, 1000, 4, 4, False),  # few rows say little
        (0.1, 1000, 20, 10, False),
        (0.1, 1000, 20, 11, True),  # more than a tenth of the first hundred, whatever follows
        (0.1, 1000, 500, 50, False),
        (0.1, 1000, 500, 51, True),
        (0.1, 10, 2, 1, False),
        (0.1, 10, 2, 2, True),
        (0.0, 1000, 500, 1, True),
        (1.0, 10, 10, 10, False),
    ],
)
def test_too_many_failed_rows(fraction: float, rows: int, generated: int, failed: int, stops: bool) -> None:
    one = stopping(fraction=fraction, rows=rows)
    one.count(generated, failed, seconds=1.0)
    assert one.too_many_failed == stops
    assert one.vote(opens=True, batches_left=1) is (Vote.STOP if stops else Vote.GO_ON)
