"""Whether a group goes on: decided by its ranks together, before each batch."""

import enum
import time
from dataclasses import dataclass

from hybridiff.lit.signals import ANOTHER_RANK, StopSignals


class Wish(enum.IntEnum):
    """What a rank wants; the largest of its group is done."""

    GO_ON = 0
    FINISH = 1  # the open shard, and then stop
    STOP = 2


@dataclass
class Stopping:
    """What a group does about signals and failed rows.

    Args:
        signals: Received by this rank.
        grace_s: Seconds that an open shard may still take.
        max_failed_fraction: Of the rows drawn, 0 to 1.
        rows: That the group has to draw in all.

    Attributes:
        stopped: Whether the group has given up the rest.
        finishing: Whether it will after the open shard; of all ranks of the group alike, unlike what each was asked.
        drawn: Rows so far; ``failed`` of them.
    """

    signals: StopSignals
    grace_s: float
    max_failed_fraction: float
    rows: int
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
    def ending(self) -> bool:
        """Whether it is no use to open another shard."""
        return self.finishing or self.too_many_failed

    def count(self, drawn: int, failed: int, seconds: float) -> None:
        """Notes a batch."""
        self.drawn += drawn
        self.failed += failed
        self.slowest_s = max(self.slowest_s, seconds)

    def wish(self, opens: bool, batches_left: int) -> Wish:
        """What this rank wants before a batch.

        Args:
            opens: Whether the batch is the first of its shard.
            batches_left: Of the shard, this one among them.
        """
        if self.too_many_failed:
            return Wish.STOP
        if not self.signals.asked():
            return Wish.GO_ON
        grace_left_s = self.signals.since + self.grace_s - time.monotonic()
        return Wish.STOP if opens or batches_left * self.slowest_s > grace_left_s else Wish.FINISH

    def decide(self, wish: Wish, opens: bool) -> bool:
        """Whether the group draws the batch, by the largest wish of its ranks."""
        self.finishing = self.finishing or wish is not Wish.GO_ON
        self.stopped = self.stopped or wish is Wish.STOP or (wish is Wish.FINISH and opens)
        if self.stopped and not self.too_many_failed:
            self.signals.received = self.signals.received or ANOTHER_RANK
        return not self.stopped
