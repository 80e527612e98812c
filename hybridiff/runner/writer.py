"""The callback that hands results to the corpus and rates to the loggers."""

import os
import platform
import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from hybridiff.config import OutputConfig
from hybridiff.corpus.background import BackgroundWriter
from hybridiff.corpus.results import Result
from hybridiff.corpus.shard import ShardWriter
from hybridiff.runner.data import PromptBatch


class CorpusWriter(BasePredictionWriter):
    """Writes on the group's leader; logs images/s, seconds per image and failed rows.

    Args:
        open_shard: Opens the writer of a shard by its index.
        output: Format and quality of the images.
        passing: Whether an error of the storage costs no more than the shard; else it ends the run.
        closed: Told each shard that is done with.

    Attributes:
        lost: Why shards could not be written, by index.
    """

    def __init__(
        self,
        open_shard: Callable[[int], ShardWriter],
        output: OutputConfig,
        passing: Callable[[Exception], bool] = lambda _: False,
        closed: Callable[[int], None] = lambda _: None,
    ) -> None:
        super().__init__(write_interval="batch")
        self._open_shard, self._closed = open_shard, closed
        self._output = output
        self._passing = passing
        self.lost: dict[int, str] = {}
        self._writer: BackgroundWriter | None = None
        self._last = 0.0  # when the last batch ended, its writing included as far as it had to be waited for
        self._shard_seconds = 0.0
        self._failed = 0

    def given_up(self, shard: int) -> bool:
        """Whether no more batches of a shard are needed; the leader alone knows."""
        return self._writer is not None and self._writer.given_up(shard)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the background threads, on leaders."""
        if trainer.strategy.group.leader:  # type: ignore[attr-defined]
            output = self._output
            self._writer = BackgroundWriter(
                self._open_shard, output.image_format, output.quality, closed=self._closed, passing=self._passing
            )
            self.lost = self._writer.lost

    def on_predict_batch_start(self, *_: Any, **__: Any) -> None:
        """Takes the time of the first batch's start; the others start where the one before ended."""
        self._last = self._last or time.perf_counter()

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: list[Result],
        batch_indices: Any,
        batch: PromptBatch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Hands the batch over, and logs."""
        if not prediction:  # the group has stopped, or leaves the shard
            self._last, self._shard_seconds = time.perf_counter(), 0.0
            return
        if self._writer is not None:
            self._writer.put(
                batch.shard,
                prediction,
                batch.last,
                {"group_s": self._shard_seconds + time.perf_counter() - self._last, "group": self._group(trainer)},
            )
        self._log(trainer, prediction, batch, batch_idx)

    def _log(self, trainer: Trainer, prediction: list[Result], batch: PromptBatch, step: int) -> None:
        """The job's images/s, extrapolated from this group, and this group's failed rows."""
        self._failed += sum(result.error is not None for result in prediction)
        now = time.perf_counter()
        latency_s, self._last = now - self._last, now
        self._shard_seconds = 0.0 if batch.last else self._shard_seconds + latency_s
        rates = {
            "images_per_s": len(prediction) / latency_s * trainer.strategy.group.count,  # type: ignore[attr-defined]
            "seconds_per_image": latency_s / len(prediction),
            "failed_rows": self._failed,
        }
        for logger in trainer.loggers:
            logger.log_metrics(rates, step=step)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Waits for the last shard's commit."""
        if self._writer is None:
            return
        self._writer.close()
        self._writer = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Drops the open shard."""
        if self._writer is not None:
            self._writer.abort()
            self._writer = None

    @staticmethod
    def _group(trainer: Trainer) -> dict[str, Any]:
        group = trainer.strategy.group  # type: ignore[attr-defined]
        return {"index": group.index, "count": group.count, "size": group.size, "leader": f"{platform.node()}-{os.getpid()}"}
