"""Pending shards, handed out to groups."""

import math
from collections.abc import Iterator
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from hybridiff.cluster.signals import ANOTHER_RANK, StopSignals
from hybridiff.data.plan import Plan
from hybridiff.lit.batches import DrawnBatches, PromptBatch, ShardBatches
from hybridiff.lit.stopping import Stopping
from hybridiff.parallel import Group
from hybridiff.parallel.mesh import largest, tell
from hybridiff.sinks.claims import Claims, DrawStopped
from hybridiff.sinks.corpus import Corpus
from hybridiff.sinks.damage import ShardDamaged
from hybridiff.sinks.failures import failed_keys, with_failures

_NONE, _STOPPED = -1, -2  # what is told where there is no shard to be had, and where none is to be drawn any more


class PromptData(LightningDataModule):
    """Gives both ranks of a group the same batches, and each group its own shards.

    Args:
        plan: All shards.
        corpus: Tells which are done.
        batch_size: Images that a group draws at once.
        claims: Where groups claim shards, this group's; None where each has its own from the start.
        retry_failed: Whether to draw the failed rows of committed shards, instead of the shards that are not committed.
        signals: That end the drawing of shards, with claims.
        part: This job's place among those that share the output, and their number: it takes every so many-th shard.

    Attributes:
        shards: Of this group, in order: all, or those claimed so far.
        stopping: Ends the batches early, once set.
        lost: Why shards could not be read, by index, with ``retry_failed``.
    """

    def __init__(
        self,
        plan: Plan,
        corpus: Corpus,
        batch_size: int,
        claims: Claims | None = None,
        retry_failed: bool = False,
        signals: StopSignals | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        super().__init__()
        self.part = part
        assert not (claims is not None and retry_failed), "claims are on shards that are not committed"
        self.claims = claims
        self.retry_failed = retry_failed
        self._rows: dict[int, int] = {}  # to draw of each pending shard
        self.stopping: Stopping | None = None
        self.lost: dict[int, str] = {}
        self._signals = signals or StopSignals()
        self._stopped = False
        self._even_share = 0
        self.plan = plan
        self.corpus = corpus
        self.batch_size = batch_size
        self.shards: list[int] = []

    def setup(self, stage: str) -> None:
        """Rank 0 lists the commit markers once for all ranks; group i of n takes every n-th pending shard from the i-th on.

        With claims, each group draws its first shard instead.
        """
        assert self.trainer is not None
        strategy: Any = self.trainer.strategy
        group: Group = strategy.group
        self._rows = strategy.broadcast(self._pending() if strategy.is_global_zero else {})
        mine = list(self._rows)[group.index :: group.count]
        if self.claims is None:
            self.shards = mine
            return
        self._even_share = sum(self._rows[index] for index in mine)
        if self._rows:
            self._draw(group)

    def _pending(self) -> dict[int, int]:
        committed = self.corpus.committed()
        first, step = self.part
        mine = set(range(first, self.plan.shards, step))  # of all shards, not of those left, which differ from job to job
        if self.retry_failed:
            failures, broken = with_failures(self.corpus, committed & mine)
            self.lost |= {index: f"ShardDamaged: {damage}" for index, damage in broken.items()}
            return failures
        return {index: self.plan.shard_rows(index) for index in sorted(mine - committed)}

    @property
    def images(self) -> int:
        """Images that this group will draw; with claims, its even share, of which it may draw more or less."""
        return max(sum(map(self._rows_of, self.shards)), self._even_share)

    @property
    def share(self) -> int:
        """Rows of the whole job, committed or not, that fall to one group."""
        group: Group = self.trainer.strategy.group  # type: ignore[union-attr]
        return math.ceil(self.plan.rows / (self.part[1] * group.count))

    def _rows_of(self, index: int) -> int:
        return self._rows[index] if index in self._rows else self.plan.shard_rows(index)

    @property
    def stopped(self) -> bool:
        """Whether the group has given up the rest."""
        return self._stopped or (self.stopping is not None and self.stopping.stopped)

    def _draw(self, group: Group) -> bool:
        """Adds the shard that the leader claims, on every rank of the group; returns whether there was one."""
        index = _NONE
        try:
            index = self._next() if group.leader else _NONE
        finally:  # also where storage failed the leader: the others must not wait for it
            index = tell(group, index)
        self.shards += [index] if index >= 0 else []
        if index == _STOPPED:
            self._stopped = True
            if self.stopping is None or not self.stopping.gives_up:
                self._signals.received = self._signals.received or ANOTHER_RANK
        return index >= 0

    def _next(self) -> int:
        assert self.claims is not None
        try:
            index = self.claims.draw(self._ending)
        except DrawStopped:
            return _STOPPED
        return _NONE if index is None else index

    def _ending(self) -> bool:
        return self._signals.asked() or (self.stopping is not None and self.stopping.ending)

    def _drawn(self, group: Group) -> Iterator[int]:
        if self.shards:
            yield self.shards[0]
            while not self.stopped and self._draw(group):
                yield self.shards[-1]

    def predict_dataloader(self) -> DataLoader[PromptBatch]:
        """Ready-made batches; no sampler of Lightning's comes between."""
        only = self._failed if self.retry_failed else None
        batches = ShardBatches(self.plan, self.shards, self.batch_size, lambda: self.stopped, only)
        if self.claims is not None:
            group: Group = self.trainer.strategy.group  # type: ignore[union-attr]
            most = max(1, sum(self._rows.values()))
            batches = DrawnBatches(self.plan, self._drawn(group), self.batch_size, most, lambda: self.stopped)
        return DataLoader(batches, batch_size=None)

    def _failed(self, index: int) -> frozenset[str]:
        """Keys to draw again of a shard; none where any rank of the group found it damaged, which costs that shard alone."""
        group: Group = self.trainer.strategy.group  # type: ignore[union-attr]
        keys: frozenset[str] = frozenset()
        try:
            keys = failed_keys(self.corpus, index)
        except ShardDamaged as damage:
            self.lost[index] = f"ShardDamaged: {damage}"
        if largest(group, int(index in self.lost)):
            self.lost.setdefault(index, "another rank of the group found it damaged")
            return frozenset()
        return keys

    def transfer_batch_to_device(self, batch: PromptBatch, device: Any, dataloader_idx: int) -> PromptBatch:
        """Batches hold text, nothing to move."""
        return batch
