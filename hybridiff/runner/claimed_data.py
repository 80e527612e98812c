"""Shards that a group claims one after another."""

from collections.abc import Iterator

from hybridiff.cluster.signals import ANOTHER_RANK, StopSignals
from hybridiff.corpus.claims import Claims, DrawStopped
from hybridiff.corpus.corpus import Corpus
from hybridiff.parallel.mesh import broadcast_int
from hybridiff.prompts.plan import Plan
from hybridiff.runner.batches import DrawnBatches, ShardBatches
from hybridiff.runner.datamodule import PromptData

_NONE, _STOPPED = -1, -2  # what is told where there is no shard to be had, and where none is to be drawn any more


class ClaimedData(PromptData):
    """Gives each group the next shard that is free, when it is done with the one before.

    Args:
        plan: All shards.
        corpus: Tells which are done.
        batch_size: Images that a group draws at once.
        claims: This group's.
        signals: That end the drawing of shards.

    Attributes:
        shards: Claimed so far.
    """

    def __init__(self, plan: Plan, corpus: Corpus, batch_size: int, claims: Claims, signals: StopSignals) -> None:
        super().__init__(plan, corpus, batch_size)
        self._claims, self._signals = claims, signals
        self._stopped = False
        self._even_share = 0

    def setup(self, stage: str) -> None:
        """Each group draws its first shard, if any is pending."""
        super().setup(stage)
        self._even_share, self.shards = super().images, []
        if self._rows:
            self._draw()

    @property
    def images(self) -> int:
        """This group's even share of the images, of which it may draw more or less, or what it has drawn if that is more."""
        return max(super().images, self._even_share)

    @property
    def stopped(self) -> bool:
        """Whether the group has given up the rest."""
        return self._stopped or super().stopped

    def _draw(self) -> bool:
        """Adds the shard that the leader claims, on every rank of the group; returns whether there was one."""
        index = _NONE
        try:
            index = self._next() if self._group.leader else _NONE
        finally:  # also where storage failed the leader: the others must not wait for it
            index = broadcast_int(self._group, index)
        self.shards += [index] if index >= 0 else []
        if index == _STOPPED:
            self._stopped = True
            if self.stopping is None or not self.stopping.gives_up:
                self._signals.received = self._signals.received or ANOTHER_RANK
        return index >= 0

    def _next(self) -> int:
        try:
            index = self._claims.draw(self._ending)
        except DrawStopped:
            return _STOPPED
        return _NONE if index is None else index

    def _ending(self) -> bool:
        return self._signals.asked() or (self.stopping is not None and self.stopping.ending)

    def _drawn(self) -> Iterator[int]:
        if self.shards:
            yield self.shards[0]
            while not self.stopped and self._draw():
                yield self.shards[-1]

    def _batches(self) -> ShardBatches:
        most = max(1, sum(self._rows.values()))
        return DrawnBatches(self.plan, self._drawn(), self.batch_size, most, lambda: self.stopped)
