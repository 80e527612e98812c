"""Rows that failed, handed out to be drawn again."""

from hybridiff.corpus.reader import ShardDamaged, failed_keys, with_failures
from hybridiff.parallel.mesh import largest
from hybridiff.runner.batches import ShardBatches
from hybridiff.runner.datamodule import PromptData


class FailedData(PromptData):
    """Gives groups the failed rows of committed shards; a shard that is found damaged is left out, and why is in ``lost``."""

    tries_all = True

    def _pending(self) -> dict[int, int]:
        failures, broken = with_failures(self.corpus, self.corpus.committed() & self._of_this_job())
        self.lost |= {index: f"ShardDamaged: {damage}" for index, damage in broken.items()}
        return failures

    def _batches(self) -> ShardBatches:
        return ShardBatches(self.plan, self.shards, self.batch_size, lambda: self.stopped, self._failed)

    def _failed(self, index: int) -> frozenset[str]:
        """Keys to draw again of a shard; none where any rank of the group found it damaged, which costs that shard alone."""
        keys: frozenset[str] = frozenset()
        try:
            keys = failed_keys(self.corpus, index)
        except ShardDamaged as damage:
            self.lost[index] = f"ShardDamaged: {damage}"
        if largest(self._group, int(index in self.lost)):
            self.lost.setdefault(index, "another rank of the group found it damaged")
            return frozenset()
        return keys
