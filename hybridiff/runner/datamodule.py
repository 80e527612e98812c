"""Pending shards, handed out to groups."""

import math
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from hybridiff.corpus.corpus import Corpus
from hybridiff.parallel import Group
from hybridiff.prompts.plan import Plan
from hybridiff.runner.batches import PromptBatch, ShardBatches
from hybridiff.runner.stopping import Stopping


class PromptData(LightningDataModule):
    """Gives all ranks of a group the same batches, and each group its own shards, from the start.

    Args:
        plan: All shards.
        corpus: Tells which are done.
        batch_size: Images that a group draws at once.
        part: This job's place among those that share the output, and their number: it takes every so many-th shard.

    Attributes:
        tries_all: Whether failed rows are no reason to stop.
        shards: Of this group, in order.
        stopping: Ends the batches early, once set.
        lost: Why shards could not be read, by index.
    """

    tries_all = False

    def __init__(self, plan: Plan, corpus: Corpus, batch_size: int, part: tuple[int, int] = (0, 1)) -> None:
        super().__init__()
        self.plan = plan
        self.corpus = corpus
        self.batch_size = batch_size
        self.part = part
        self.shards: list[int] = []
        self.stopping: Stopping | None = None
        self.lost: dict[int, str] = {}
        self._rows: dict[int, int] = {}  # to draw of each pending shard

    def setup(self, stage: str) -> None:
        """Rank 0 lists the commit markers once for all ranks; group i of n takes every n-th pending shard from the i-th on."""
        assert self.trainer is not None
        strategy: Any = self.trainer.strategy
        self._rows = strategy.broadcast(self._pending() if strategy.is_global_zero else {})
        self.shards = list(self._rows)[self._group.index :: self._group.count]

    def _pending(self) -> dict[int, int]:
        """Rows to draw of each shard that is this job's to draw, in order."""
        return {index: self.plan.shard_rows(index) for index in sorted(self._of_this_job() - self.corpus.committed())}

    def _of_this_job(self) -> set[int]:
        first, step = self.part
        return set(range(first, self.plan.shards, step))  # of all shards, not of those left, which differ from job to job

    @property
    def _group(self) -> Group:
        group: Group = self.trainer.strategy.group  # type: ignore[union-attr]
        return group

    @property
    def images(self) -> int:
        """Images that this group will draw."""
        return sum(self._rows[index] if index in self._rows else self.plan.shard_rows(index) for index in self.shards)

    @property
    def share(self) -> int:
        """Rows of the whole job, committed or not, that fall to one group."""
        return math.ceil(self.plan.rows / (self.part[1] * self._group.count))

    @property
    def stopped(self) -> bool:
        """Whether the group has given up the rest."""
        return self.stopping is not None and self.stopping.stopped

    def predict_dataloader(self) -> DataLoader[PromptBatch]:
        """Ready-made batches; no sampler of Lightning's comes between."""
        return DataLoader(self._batches(), batch_size=None)

    def _batches(self) -> ShardBatches:
        return ShardBatches(self.plan, self.shards, self.batch_size, lambda: self.stopped)

    def transfer_batch_to_device(self, batch: PromptBatch, device: Any, dataloader_idx: int) -> PromptBatch:
        """Batches hold text, nothing to move."""
        return batch
