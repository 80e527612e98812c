"""A progress bar that counts images."""

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from hybridiff.runner.data import PromptBatch, ShardData


class ImageProgressBar(TQDMProgressBar):
    """Images drawn by this group, images/s and time left."""

    def init_predict_tqdm(self) -> Tqdm:
        """A bar over the images of this group's pending shards."""
        data: ShardData = self.trainer.datamodule  # type: ignore[attr-defined]
        return Tqdm(
            desc="generating",
            total=data.images,
            unit="image",
            disable=self.is_disabled or not data.images,
            dynamic_ncols=True,
            file=sys.stderr,
            mininterval=0.5,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} images [{elapsed}<{remaining}, {rate_noinv_fmt}]",
        )

    def on_predict_batch_start(self, *_: Any, **__: Any) -> None:
        """Lightning's bar would start anew here to count batches."""

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: PromptBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts the batch's images."""
        self.predict_progress_bar.update(len(outputs))
