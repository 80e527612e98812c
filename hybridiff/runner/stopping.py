"""Whether a group goes on: decided by its ranks together, before each batch."""

import enum
import time
from dataclasses import dataclass

from hybridiff.cluster.signals import ANOTHER_RANK, StopSignals


class Vote(enum.IntEnum):
    """What a rank is for; the largest vote of its group is done."""

    GO_ON = 0
    FINISH_SHARD = 1  # and then stop
    LEAVE_SHARD = 2  # it can't be written any more: the next one
    STOP = 3


@dataclass
class Stopping:
    """What a group does about signals, shards that were lost, and failed rows.

    Args:
        signals: Received by this rank.
        grace_s: Seconds that an open shard may still take.
        max_failed_fraction: Of the rows drawn, 0 to 1.
        rows: This group's share of the whole job, committed or not: a few rows that are left say little.
        tries_all: Whether failed rows are no reason to stop, as where they are what is drawn.

    Attributes:
        stopped: Whether the group has given up the rest.
        finishing: Whether it will after the open shard; of all ranks of the group alike, unlike what each was asked.
        drawn: Rows so far; ``failed`` of them.
    """

    signals: StopSignals
    grace_s: float
    max_failed_fraction: float
    rows: int
    tries_all: bool = False
    stopped: bool = False
    finishing: bool = False
    drawn: int = 0
    failed: int = 0
    slowest_s: float = 0.0

    FEW = 100  # rows: of fewer, the failed ones count as if there were so many

    @property
    def too_many_failed(self) -> bool:
        """Whether the failed rows are too large a part, or are sure to be."""
        return self.failed > self.max_failed_fraction * max(self.drawn, min(self.FEW, self.rows))

    @property
    def gives_up(self) -> bool:
        """Whether the failed rows are a reason to stop."""
        return self.too_many_failed and not self.tries_all

    @property
    def ending(self) -> bool:
        """Whether it is no use to open another shard."""
        return self.finishing or self.gives_up

    def count(self, drawn: int, failed: int, seconds: float) -> None:
        """Notes a batch."""
        self.drawn += drawn
        self.failed += failed
        self.slowest_s = max(self.slowest_s, seconds)

    def vote(self, opens: bool, batches_left: int, lost: bool = False) -> Vote:
        """What this rank is for before a batch.

        Args:
            opens: Whether the batch is the first of its shard.
            batches_left: Of the shard, this one among them.
            lost: Whether the shard can't be written any more, as far as this rank knows.
        """
        if self.gives_up:
            return Vote.STOP
        going_on = Vote.LEAVE_SHARD if lost else Vote.GO_ON
        if not self.signals.asked():
            return going_on
        grace_left_s = self.signals.since + self.grace_s - time.monotonic()
        late = opens or batches_left * self.slowest_s > grace_left_s
        return Vote.STOP if late else max(going_on, Vote.FINISH_SHARD)

    def decide(self, vote: Vote, opens: bool) -> bool:
        """Whether the group draws the batch, by the largest vote of its ranks."""
        self.finishing = self.finishing or vote in (Vote.FINISH_SHARD, Vote.STOP)
        self.stopped = self.stopped or vote is Vote.STOP or (vote is Vote.FINISH_SHARD and opens)
        if self.stopped and not self.gives_up:
            self.signals.received = self.signals.received or ANOTHER_RANK
        return not self.stopped and vote is not Vote.LEAVE_SHARD
