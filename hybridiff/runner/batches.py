"""The batches of shards: what a group draws at once."""

from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass

from torch.utils.data import IterableDataset

from hybridiff.prompts.plan import Plan, Shard
from hybridiff.prompts.rows import Sample


@dataclass(frozen=True)
class PromptBatch:
    """What a group draws at once.

    Args:
        shard: The shard that it belongs to.
        samples: Requested images.
        last: Whether the shard is complete with it.
        first: Whether it opens the shard.
        left: Batches of the shard still to draw, this one among them.
    """

    shard: int
    samples: tuple[Sample, ...]
    last: bool
    first: bool = True
    left: int = 1


class ShardBatches(IterableDataset[PromptBatch]):
    """The batches of some shards, in order. None spans shards, so a shard's content depends on the configuration alone.

    Args:
        stopped: Asked before each batch whether the group has given up the rest.
        only: Gives the keys to draw of a shard, when its turn has come, where these are not all.
    """

    def __init__(
        self,
        plan: Plan,
        shards: Iterable[int],
        batch_size: int,
        stopped: Callable[[], bool] = lambda: False,
        only: Callable[[int], Set[str]] | None = None,
    ) -> None:
        self.plan = plan
        self.shards = shards
        self.batch_size = batch_size
        self.stopped = stopped
        self.only = only

    def __iter__(self) -> Iterator[PromptBatch]:
        for index in self.shards:
            batches = self._shard(index).batches(self.batch_size)
            for position, samples in enumerate(batches):
                if self.stopped():
                    return
                left = len(batches) - position
                yield PromptBatch(index, samples, last=left == 1, first=position == 0, left=left)

    def _shard(self, index: int) -> Shard:
        shard = self.plan.shard(index)
        if self.only is None:
            return shard
        keys = self.only(index)
        return Shard(index, tuple(sample for sample in shard.samples if sample.key in keys))


class DrawnBatches(ShardBatches):
    """The batches of shards that are drawn one after another.

    Its length is the most that there may be: Lightning then asks for a batch only when it is done with the one before, rather
    than hold that back while it waits for the next shard.
    """

    def __init__(self, plan: Plan, shards: Iterable[int], batch_size: int, most: int, stopped: Callable[[], bool]) -> None:
        super().__init__(plan, shards, batch_size, stopped)
        self.most = most

    def __len__(self) -> int:
        return self.most
