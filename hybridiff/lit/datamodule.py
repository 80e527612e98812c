"""Pending shards, handed out to groups, in batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset

from hybridiff.data.plan import Plan
from hybridiff.data.rows import Sample
from hybridiff.parallel import Group
from hybridiff.sinks.corpus import Corpus


@dataclass(frozen=True)
class PromptBatch:
    """What a group draws at once.

    Args:
        shard: The shard that it belongs to.
        samples: Requested images.
        last: Whether the shard is complete with it.
    """

    shard: int
    samples: tuple[Sample, ...]
    last: bool


class ShardBatches(IterableDataset[PromptBatch]):
    """The batches of some shards, in order. None spans shards, so a shard's content depends on the configuration alone."""

    def __init__(self, plan: Plan, shards: list[int], batch_size: int) -> None:
        self.plan = plan
        self.shards = shards
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[PromptBatch]:
        for index in self.shards:
            batches = self.plan.shard(index).batches(self.batch_size)
            for position, samples in enumerate(batches):
                yield PromptBatch(index, samples, last=position == len(batches) - 1)


class PromptData(LightningDataModule):
    """Gives both ranks of a group the same batches, and each group its own shards.

    Args:
        plan: All shards.
        corpus: Tells which are done.
        batch_size: Images that a group draws at once.
    """

    def __init__(self, plan: Plan, corpus: Corpus, batch_size: int) -> None:
        super().__init__()
        self.plan = plan
        self.corpus = corpus
        self.batch_size = batch_size
        self.shards: list[int] = []

    def setup(self, stage: str) -> None:
        """Rank 0 lists the commit markers once for all ranks; group i of n takes every n-th pending shard from the i-th on."""
        assert self.trainer is not None
        strategy: Any = self.trainer.strategy
        pending = sorted(set(range(self.plan.shards)) - self.corpus.committed()) if strategy.is_global_zero else []
        group: Group = strategy.group
        self.shards = strategy.broadcast(pending)[group.index :: group.count]

    @property
    def images(self) -> int:
        """Images that this group will draw."""
        return sum(self.plan.shard_rows(index) for index in self.shards)

    def predict_dataloader(self) -> DataLoader[PromptBatch]:
        """Ready-made batches; no sampler of Lightning's comes between."""
        return DataLoader(ShardBatches(self.plan, self.shards, self.batch_size), batch_size=None)

    def transfer_batch_to_device(self, batch: PromptBatch, device: Any, dataloader_idx: int) -> PromptBatch:
        """Batches hold text, nothing to move."""
        return batch
