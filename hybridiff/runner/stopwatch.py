"""How long the predict loop takes, without what comes before it."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Stopwatch(Callback):
    """Takes the time of the predict loop on this rank, from the first batch's request until the last shard is committed.

    Attributes:
        seconds: The whole.
        tail_s: Of these, after the last batch was drawn and handed over: writing that nothing hides.
        cpu_s: Of this process in that time, all threads together.
    """

    def __init__(self) -> None:
        self.seconds = self.tail_s = self.cpu_s = 0.0
        self._started = self._drawn = self._cpu = 0.0

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts on all ranks at once; models are loaded by now."""
        trainer.strategy.barrier()
        self._cpu, self._started = time.process_time(), time.perf_counter()
        self._drawn = self._started

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """No batch is left."""
        self._drawn = time.perf_counter()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: Any) -> None:
        """Stops; the writer has waited for its last commit when the loop ended."""
        now = time.perf_counter()
        self.seconds, self.tail_s = now - self._started, now - self._drawn
        self.cpu_s = time.process_time() - self._cpu
