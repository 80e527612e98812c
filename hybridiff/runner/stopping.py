"""Whether a group goes on: decided by its ranks together, before each batch."""

import enum
import time
from dataclasses import dataclass

from hybridiff.cluster.signals import ANOTHER_RANK, StopSignals


class Vote(enum.IntEnum):
    """What a rank votes for; its group does the largest vote of its ranks."""

    GO_ON = 0
    FINISH_SHARD = 1  # and then stop
    LEAVE_SHARD = 2  # it can't be written any more: the next one
    STOP = 3


@dataclass
class Stopping:
    """What a group does about signals, shards that were lost, and failed rows.

    Args:
        signals: received by this rank
        grace_s: seconds that an open shard may still take
        max_failed_fraction: of the generated rows, 0 to 1
        rows: this group's share of the whole job, committed or not, as a few rows that are left show little
        tries_all: whether failed rows are no reason to stop, as where they are retried

    Attributes:
        stopped: whether the group has given up the rest
        finishing: whether it will after the open shard; the same on all ranks of the group, unlike what each was asked
        generated: number of rows so far; ``failed`` of them
    """

    signals: StopSignals
    grace_s: float
    max_failed_fraction: float
    rows: int
    tries_all: bool = False
    stopped: bool = False
    finishing: bool = False
    generated: int = 0
    failed: int = 0
    slowest_s: float = 0.0

    FEW = 100  # rows: of fewer, the failed ones count as if there were so many

    @property
    def too_many_failed(self) -> bool:
        """Whether the failed rows are too large a part, or are sure to be."""
        return self.failed > self.max_failed_fraction * max(self.generated, min(self.FEW, self.rows))

    @property
    def gives_up(self) -> bool:
        """Whether the failed rows are a reason to stop."""
        return self.too_many_failed and not self.tries_all

    @property
    def ending(self) -> bool:
        """Whether it is no use to open another shard."""
        return self.finishing or self.gives_up

    def count(self, generated: int, failed: int, seconds: float) -> None:
        """Notes a batch."""
        self.generated += generated
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
        """Whether the group generates the batch, by the largest vote of its ranks."""
        self.finishing = self.finishing or vote in (Vote.FINISH_SHARD, Vote.STOP)
        self.stopped = self.stopped or vote is Vote.STOP or (vote is Vote.FINISH_SHARD and opens)
        if self.stopped and not self.gives_up:
            self.signals.received = self.signals.received or ANOTHER_RANK
        return not self.stopped and vote is not Vote.LEAVE_SHARD
