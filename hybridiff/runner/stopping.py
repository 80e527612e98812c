"""Whether a group continues: its ranks vote before each batch."""

import enum
import time
from dataclasses import dataclass

from hybridiff.cluster.signals import ANOTHER_RANK, StopSignals


class Vote(enum.IntEnum):
    """What a rank votes for; the largest vote of its ranks decides for the group."""

    GO_ON = 0
    FINISH_SHARD = 1  # and then stop
    LEAVE_SHARD = 2  # it can't be written any more; continue with the next one
    STOP = 3


@dataclass
class Stopping:
    """A group's response to signals, shards that can't be written, and failed rows.

    Args:
        signals: signals received by this rank.
        grace_s: seconds that an open shard may still take after a signal.
        max_failed_fraction: largest allowed fraction of failed rows, 0 to 1.
        rows: rows of the whole job per group, committed or not.
        tries_all: whether failed rows are no reason to stop, as where they are retried.

    Attributes:
        stopped: whether the group has stopped.
        finishing: whether the group stops after the open shard; equal on all its ranks.
        generated: number of rows so far; ``failed`` of them.
        slowest_s: seconds of the slowest batch.
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

    FEW = 100  # rows; with fewer so far, the fraction is one of this number, or of the group's share if that is less

    @property
    def too_many_failed(self) -> bool:
        """Whether the fraction of failed rows is too large, or will be."""
        return self.failed > self.max_failed_fraction * max(self.generated, min(self.FEW, self.rows))

    @property
    def gives_up(self) -> bool:
        """Whether the failed rows are a reason to stop."""
        return self.too_many_failed and not self.tries_all

    @property
    def ending(self) -> bool:
        """Whether the group opens no further shard."""
        return self.finishing or self.gives_up

    def count(self, generated: int, failed: int, seconds: float) -> None:
        """Counts a batch."""
        self.generated += generated
        self.failed += failed
        self.slowest_s = max(self.slowest_s, seconds)

    def vote(self, opens: bool, batches_left: int, lost: bool = False) -> Vote:
        """This rank's vote before a batch.

        Args:
            opens: whether the batch is the first of its shard.
            batches_left: number of batches left in the shard, this one included.
            lost: whether the shard can't be written any more, as far as this rank knows.
        """
        if self.gives_up:
            return Vote.STOP
        otherwise = Vote.LEAVE_SHARD if lost else Vote.GO_ON
        if not self.signals.asked():
            return otherwise
        grace_left_s = self.signals.since + self.grace_s - time.monotonic()
        late = opens or batches_left * self.slowest_s > grace_left_s
        return Vote.STOP if late else max(otherwise, Vote.FINISH_SHARD)

    def decide(self, vote: Vote, opens: bool) -> bool:
        """Whether the group generates the batch, by the largest vote of its ranks."""
        self.finishing = self.finishing or vote in (Vote.FINISH_SHARD, Vote.STOP)
        self.stopped = self.stopped or vote is Vote.STOP or (vote is Vote.FINISH_SHARD and opens)
        if self.stopped and not self.gives_up:
            self.signals.received = self.signals.received or ANOTHER_RANK
        return not self.stopped and vote is not Vote.LEAVE_SHARD
