"""The callback that passes results to the corpus and to own callbacks, and rates to the loggers."""

import os
import platform
import time
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from hybridiff.corpus.background import BackgroundWriter
from hybridiff.corpus.shard import Result, ShardWriter
from hybridiff.images import Encoder
from hybridiff.runner.data import PromptBatch


@runtime_checkable
class OnResult(Protocol):
    """An own callback that receives each result: a Lightning callback, given by class path in ``trainer.callbacks``.

        class Brightness(lightning.pytorch.Callback):
            def on_result(self, result: Result) -> None:
                if result.image is not None:
                    print(result.sample.key, result.image.mean())

    Each row comes once in a run, failed ones too, in the order in which its group generates them, on the first rank of the group,
    before its shard is committed. What a callback raises ends the run.
    """

    def on_result(self, result: Result) -> None:
        """Receives a result, whose image the callback must not change."""


class CorpusWriter(BasePredictionWriter):
    """Writes on the group's first rank; logs images/s, seconds per image and failed rows.

    Args:
        open_shard: returns the writer of a shard by its index.
        encoder: encoder of the images.
        is_transient: returns whether an error is transient and loses only its shard; any other ends the run.
        closed: called with the index of each finished shard.

    Attributes:
        lost: reasons why shards could not be written, by index.
    """

    def __init__(
        self,
        open_shard: Callable[[int], ShardWriter],
        encoder: Encoder,
        is_transient: Callable[[Exception], bool] = lambda _: False,
        closed: Callable[[int], None] = lambda _: None,
    ) -> None:
        super().__init__(write_interval="batch")
        self._open_shard, self._closed = open_shard, closed
        self._encoder = encoder
        self._is_transient = is_transient
        self.lost: dict[int, str] = {}
        self._writer: BackgroundWriter | None = None
        self._last = 0.0  # when the last batch ended, with the time spent waiting for its writing
        self._shard_seconds = 0.0
        self._failed = 0

    def given_up(self, shard: int) -> bool:
        """Whether no more batches of a shard are needed; only the group's first rank knows."""
        return self._writer is not None and self._writer.given_up(shard)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the background threads, on the group's first rank."""
        if trainer.strategy.group.leader:  # type: ignore[attr-defined]
            self._writer = BackgroundWriter(self._open_shard, self._encoder, closed=self._closed, is_transient=self._is_transient)
            self.lost = self._writer.lost

    def on_predict_batch_start(self, *_: Any, **__: Any) -> None:
        """Records the start of the first batch; the others start when the one before ends."""
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
        """Passes the batch to the writer and to own callbacks, and logs."""
        if not prediction:  # the group has stopped, or abandons the shard
            self._last, self._shard_seconds = time.perf_counter(), 0.0
            return
        if self._writer is not None:
            self._call_back(trainer, prediction)  # before the last batch's shard is committed
            self._writer.put(
                batch.shard,
                prediction,
                batch.last,
                {"group_s": self._shard_seconds + time.perf_counter() - self._last, "group": self._group(trainer)},
            )
        self._log(trainer, prediction, batch, batch_idx)

    @staticmethod
    def _call_back(trainer: Trainer, results: list[Result]) -> None:
        """Calls ``on_result`` of own callbacks."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, OnResult):
                for result in results:
                    callback.on_result(result)

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
