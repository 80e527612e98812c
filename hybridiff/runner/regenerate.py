"""``--only``: one row generated again, in its batch, and compared with the corpus."""

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from hybridiff.cluster.signals import StopSignals
from hybridiff.corpus.compare import compare, find_row
from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.shard import Result
from hybridiff.errors import UsageError
from hybridiff.prompts.plan import Plan
from hybridiff.runner.data import PromptBatch, ShardData, batches_of
from hybridiff.runner.job import Job
from hybridiff.runner.module import CorpusModule
from hybridiff.runner.trainer import build_trainer, wait_for_children


class RowData(ShardData):
    """The batch of one key for the first group, and nothing for the others.

    The batch is generated as a whole, as a schedule may decide by all its images.

    Args:
        plan: all shards.
        corpus: corpus that holds the row.
        batch_size: number of images that a group generates at once.
        shard: index of the row's shard.
        key: key of the row.
    """

    def __init__(self, plan: Plan, corpus: Corpus, batch_size: int, shard: int, key: str) -> None:
        super().__init__(plan, corpus, batch_size)
        self._shard, self._key = shard, key

    def setup(self, stage: str) -> None:
        """Nothing is listed, broadcast or acquired: every rank knows the row."""
        self.shards = [self._shard] if self._group.index == 0 else []
        self._rows = {self._shard: self.plan.shard_rows(self._shard)}

    def _batches(self) -> Iterator[PromptBatch]:
        for shard in self.shards:
            batches = batches_of(shard, self.plan.shard(shard).batches(self.batch_size))
            yield from (batch for batch in batches if any(sample.key == self._key for sample in batch.samples))


class KeepResults(Callback):
    """Keeps the results of all batches."""

    def __init__(self) -> None:
        self.results: list[Result] = []

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any, **__: Any) -> None:
        """Adds a batch's results."""
        self.results += outputs


def regenerate(job: Job, key: str) -> tuple[int, list[str]]:
    """Generates the batch of a row again and compares the row; nothing is written.

    Args:
        job: checked job.
        key: key of the row.

    Returns:
        Exit code, 0 if the row is equal and 1 if it is not, and the comparison in one line.

    Raises:
        UsageError: the output has no such row, or is a corpus of another configuration.
    """
    if job.corpus.read_run() is None:
        raise UsageError(f"output.url {job.corpus.url} holds no corpus; allowed with only: the output of a run")
    job.corpus.check_run(job.record)
    shard, row = find_row(job.corpus, key)
    kept = KeepResults()
    options = job.trainer_options | {"logger": False, "enable_progress_bar": False}
    trainer = build_trainer(options, job.config.parallel, job.launch, [kept])
    data = RowData(job.plan, job.corpus, job.config.data.batch_size, shard, key)
    trainer.predict(CorpusModule(job.config, job.facts), datamodule=data, return_predictions=False)
    wait_for_children(trainer, StopSignals())
    if job.launch.rank:
        return 0, []
    result = next(result for result in kept.results if result.sample.key == key)
    comparison = compare(job.corpus, shard, row, result, job.config.output.encoder)
    return int(not comparison.equal), [f"{key}: {comparison.text}"]
