"""Batches of prompts: of the shards that a group acquires one after another, or of the failed rows of committed shards."""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset

from hybridiff.cluster.signals import ANOTHER_RANK, StopSignals
from hybridiff.corpus.background import BackgroundWriter
from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.layout import lease_of, marker_name
from hybridiff.corpus.reader import ShardDamaged, failed_keys, with_failures
from hybridiff.parallel import Group
from hybridiff.parallel.mesh import all_reduce_max, broadcast_int
from hybridiff.prompts.plan import Plan
from hybridiff.prompts.rows import Sample
from hybridiff.runner.stopping import Stopping
from hybridiff.secrets import one_line
from hybridiff.storage.lease import AcquireStopped, Leases

_log = logging.getLogger(__name__)

_LOOKS = 10  # listings of markers that others are rewriting
_NONE, _STOPPED = -1, -2  # what the leader broadcasts in place of an index: no shard is left, or the run ends


@dataclass(frozen=True)
class PromptBatch:
    """A batch that a group generates at once.

    Args:
        shard: index of the shard.
        samples: requested images.
        last: whether it completes the shard.
        first: whether it opens the shard.
        left: number of batches left in the shard, this one included.
    """

    shard: int
    samples: tuple[Sample, ...]
    last: bool
    first: bool = True
    left: int = 1


def batches_of(shard: int, samples: list[tuple[Sample, ...]]) -> Iterator[PromptBatch]:
    """The batches of a shard. None spans shards, so a shard's content depends on the configuration alone."""
    for position, some in enumerate(samples):
        left = len(samples) - position
        yield PromptBatch(shard, some, last=left == 1, first=position == 0, left=left)


_Batch = TypeVar("_Batch")


class BatchStream(IterableDataset[_Batch]):
    """Batches that are made when they are requested.

    Its length is an upper bound: an iterable without one is prefetched by Lightning, which would hold a batch back while the
    group waits for its next shard.

    Args:
        batches: starts the stream.
        most: upper bound of the number of batches.
    """

    def __init__(self, batches: Callable[[], Iterator[_Batch]], most: int) -> None:
        self._batches, self._most = batches, most

    def __iter__(self) -> Iterator[_Batch]:
        return self._batches()

    def __len__(self) -> int:
        return self._most


class ShardData(LightningDataModule):
    """The batches of a group, equal on all its ranks: it acquires the next free shard when it has generated the one before.

    A group begins at its own place in the plan. Where the storage has no leases, each group has its own shards from the start.

    Args:
        plan: all shards.
        corpus: output.
        batch_size: number of images that a group generates at once.
        leases: leases of this process, used by leaders of groups; None where the storage has none.
        signals: signals that end the run.
        retry_failed: whether to generate the failed rows of committed shards, in place of the shards that are not committed.

    Attributes:
        shards: indices of the shards that this group has acquired so far.
        stopping: response of the group to signals and failed rows, once it has a model.
        lost: reasons why shards could not be read, by index.
    """

    def __init__(
        self,
        plan: Plan,
        corpus: Corpus,
        batch_size: int,
        leases: Leases | None = None,
        signals: StopSignals | None = None,
        retry_failed: bool = False,
    ) -> None:
        super().__init__()
        self.plan, self.corpus, self.batch_size, self.retry_failed = plan, corpus, batch_size, retry_failed
        self.shards: list[int] = []
        self.stopping: Stopping | None = None
        self.lost: dict[int, str] = {}
        self._leases, self._signals = leases, signals or StopSignals()
        self._rows: dict[int, int] = {}  # number of rows to generate, by pending shard
        self._listed: dict[int, datetime] = {}  # when the shards to be retried were committed
        self._queue: list[int] = []  # pending shards that this group has not acquired, the next one first
        self._even_share = 0
        self._stopped = False

    def setup(self, stage: str) -> None:
        """Rank 0 lists the commit markers once for all ranks; then each group acquires its first shard, if any is left."""
        assert self.trainer is not None
        strategy: Any = self.trainer.strategy
        self._rows, self._listed = strategy.broadcast(self._pending() if strategy.is_global_zero else ({}, {}))
        pending, group, count = list(self._rows), self._group.index, self._group.count
        self._even_share = sum(self._rows[index] for index in pending[group::count])
        place = group * len(pending) // count
        self._queue = pending[place:] + pending[:place] if self._leases else pending[group::count]
        self.shards, self._stopped = [], False
        if pending:
            self._acquire_next()

    def _pending(self) -> tuple[dict[int, int], dict[int, datetime]]:
        if not self.retry_failed:
            committed = self.corpus.committed()
            return {index: self.plan.shard_rows(index) for index in range(self.plan.shards) if index not in committed}, {}
        for looks_left in reversed(range(_LOOKS)):
            times = self.corpus.commit_times()  # before the markers are read
            try:
                failures, damaged = with_failures(self.corpus, times.keys() & set(range(self.plan.shards)))
                break
            except FileNotFoundError:  # another run is rewriting the shard, and has removed its marker since the listing
                self.corpus.check_there()
                if not looks_left:
                    raise
        self.lost |= {index: f"ShardDamaged: {damage}" for index, damage in damaged.items()}
        return failures, {index: times[index] for index in failures}

    @property
    def _group(self) -> Group:
        group: Group = self.trainer.strategy.group  # type: ignore[union-attr]
        return group

    @property
    def rows(self) -> int:
        """Number of rows that were left to generate when the run began, by all groups."""
        return sum(self._rows.values())

    @property
    def images(self) -> int:
        """Number of images that this group will generate: its even share, or what it has acquired if that is more."""
        return max(self._even_share, sum(self._rows[index] for index in self.shards))

    @property
    def share(self) -> int:
        """Number of rows of the whole job, committed or not, per group."""
        return math.ceil(self.plan.rows / self._group.count)

    @property
    def stopped(self) -> bool:
        """Whether the group generates no more."""
        return self._stopped or (self.stopping is not None and self.stopping.stopped)

    def predict_dataloader(self) -> DataLoader[PromptBatch]:
        """The stream of batches, without a sampler of Lightning's."""
        return DataLoader(BatchStream(self._batches, max(1, self.rows)), batch_size=None)

    def transfer_batch_to_device(self, batch: PromptBatch, device: Any, dataloader_idx: int) -> PromptBatch:
        """Batches hold text, nothing to move."""
        return batch

    def _batches(self) -> Iterator[PromptBatch]:
        while self.shards:
            shard = self.shards[-1]
            batches = list(batches_of(shard, self._samples(shard)))
            for batch in batches:
                if self.stopped:
                    return
                yield batch
            if not batches:
                self._release(shard)
            if self.stopped or not self._acquire_next():
                return

    def _samples(self, index: int) -> list[tuple[Sample, ...]]:
        shard = self.plan.shard(index)
        if not self.retry_failed:
            return shard.batches(self.batch_size)
        keys = self._failed_keys(index)
        retried = type(shard)(index, tuple(sample for sample in shard.samples if sample.key in keys))
        return retried.batches(self.batch_size)

    def _failed_keys(self, index: int) -> frozenset[str]:
        """Keys of the failed rows of a committed shard; none where any rank of the group finds it damaged."""
        keys: frozenset[str] = frozenset()
        try:
            keys = failed_keys(self.corpus, index)
        except ShardDamaged as damage:
            self.lost[index] = f"ShardDamaged: {damage}"
        if all_reduce_max(self._group, int(index in self.lost)):
            self.lost.setdefault(index, "another rank of the group found it damaged")
            return frozenset()
        return keys

    def _acquire_next(self) -> bool:
        """Acquires the next shard, on every rank of the group; returns whether there was one."""
        index = _NONE
        try:
            index = self._next() if self._group.leader else _NONE
        finally:  # also where storage failed the leader: the others must not wait for it
            index = broadcast_int(self._group, index)
        if index == _STOPPED:
            self._stopped = True
            if self.stopping is None or not self.stopping.gives_up:
                self._signals.received = self._signals.received or ANOTHER_RANK
        if index >= 0:
            self.shards.append(index)
        return index >= 0

    def _next(self) -> int:
        for tries_left in reversed(range(BackgroundWriter.IN_A_ROW)):
            try:
                while (index := self._acquire()) >= 0 and self._was_retried(index):
                    self._release(index)
                return index
            except AcquireStopped:
                return _STOPPED
            except Exception as error:  # storage clients raise types of their own
                if not tries_left or not self.corpus.is_transient(error):
                    raise
                _log.warning("no shard could be acquired, it is tried again: %s", one_line(error))
        raise AssertionError("the last try returns or raises")

    def _acquire(self) -> int:
        if self._leases is None:
            if self._queue and self._is_ending():
                raise AcquireStopped
            return self._queue.pop(0) if self._queue else _NONE
        name = self._leases.acquire_next(self._left, self._is_ending)
        if name is None:
            return _NONE
        place = self._queue.index(int(name))  # the next one comes after it; a shard that is lost is not acquired again
        self._queue = self._queue[place + 1 :] + self._queue[:place]
        return int(name)

    def _left(self, look: bool) -> list[str]:
        """Names of the leases on the shards that are left, in order."""
        if look:
            self.corpus.check_there()  # a lease would create its directory again
            done = frozenset() if self.retry_failed else self.corpus.committed()
            self._queue = [index for index in self._queue if index not in done]
        return [lease_of(index) for index in self._queue]

    def _was_retried(self, index: int) -> bool:
        """Whether another run has retried the shard since it was listed, or has removed its marker."""
        if not self.retry_failed:
            return False
        found, listed = self.corpus.modified(marker_name(index)), self._listed[index]
        if found is None or (found.microsecond and listed.microsecond):
            return found != listed
        return found.replace(microsecond=0) != listed.replace(microsecond=0)  # some storage gives fractions in listings only

    def _release(self, index: int) -> None:
        if self._leases is not None and self._group.leader:
            self._leases.release(lease_of(index))

    def _is_ending(self) -> bool:
        return self._signals.asked() or (self.stopping is not None and self.stopping.ending)
