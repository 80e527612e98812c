"""Pending shards, handed out to groups, in batches."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset

from hybridiff.data.plan import Plan
from hybridiff.data.rows import Sample
from hybridiff.parallel import Group
from hybridiff.parallel.mesh import tell
from hybridiff.sinks.claims import Claims
from hybridiff.sinks.corpus import Corpus

_NONE = -1  # what is told where there is no shard to be had


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

    def __init__(self, plan: Plan, shards: Iterable[int], batch_size: int) -> None:
        self.plan = plan
        self.shards = shards
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[PromptBatch]:
        for index in self.shards:
            batches = self.plan.shard(index).batches(self.batch_size)
            for position, samples in enumerate(batches):
                yield PromptBatch(index, samples, last=position == len(batches) - 1)


class DrawnBatches(ShardBatches):
    """The batches of shards that are drawn one after another.

    Its length is the most that there may be: Lightning then asks for a batch only when it is done with the one before, rather
    than hold that back while it waits for the next shard.
    """

    def __init__(self, plan: Plan, shards: Iterable[int], batch_size: int, most: int) -> None:
        super().__init__(plan, shards, batch_size)
        self.most = most

    def __len__(self) -> int:
        return self.most


class PromptData(LightningDataModule):
    """Gives both ranks of a group the same batches, and each group its own shards.

    Args:
        plan: All shards.
        corpus: Tells which are done.
        batch_size: Images that a group draws at once.
        claims: Where groups claim shards, this group's; None where each has its own from the start.

    Attributes:
        shards: Of this group: all, or those claimed so far.
    """

    def __init__(self, plan: Plan, corpus: Corpus, batch_size: int, claims: Claims | None = None) -> None:
        super().__init__()
        self.claims = claims
        self._expected = self._pending_rows = 0
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
        pending = sorted(set(range(self.plan.shards)) - self.corpus.committed()) if strategy.is_global_zero else []
        group: Group = strategy.group
        pending = strategy.broadcast(pending)
        mine = pending[group.index :: group.count]
        self._expected = sum(map(self.plan.shard_rows, mine))
        self._pending_rows = sum(map(self.plan.shard_rows, pending))
        self.shards = mine if self.claims is None else []
        if self.claims is not None and pending:
            self._draw(group)

    @property
    def images(self) -> int:
        """Images that this group will draw; with claims, its even share, of which it may draw more or less."""
        return self._expected

    def _draw(self, group: Group) -> bool:
        """Adds the shard that the leader claims, on every rank of the group; returns whether there was one."""
        assert self.claims is not None
        drawn = self.claims.draw() if group.leader else None
        index = tell(group, _NONE if drawn is None else drawn)
        self.shards += [index] if index != _NONE else []
        return index != _NONE

    def _drawn(self, group: Group) -> Iterator[int]:
        if self.shards:
            yield self.shards[0]
            while self._draw(group):
                yield self.shards[-1]

    def predict_dataloader(self) -> DataLoader[PromptBatch]:
        """Ready-made batches; no sampler of Lightning's comes between."""
        if self.claims is None:
            return DataLoader(ShardBatches(self.plan, self.shards, self.batch_size), batch_size=None)
        group: Group = self.trainer.strategy.group  # type: ignore[union-attr]
        drawn = DrawnBatches(self.plan, self._drawn(group), self.batch_size, max(1, self._pending_rows))
        return DataLoader(drawn, batch_size=None)

    def transfer_batch_to_device(self, batch: PromptBatch, device: Any, dataloader_idx: int) -> PromptBatch:
        """Batches hold text, nothing to move."""
        return batch
