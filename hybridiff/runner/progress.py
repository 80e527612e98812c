"""What a run has generated so far: a progress bar of images, and counts for the end of the run."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
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


@dataclass(frozen=True)
class Counts:
    """What ranks have generated.

    Args:
        images: rows, failed ones included.
        failed: rows that failed.
        truncated: prompts that were longer than a text encoder's window.
        computed: sampling steps of which the network computed at least one guidance branch.
        extrapolated: sampling steps that were predicted from earlier ones.
        seconds: since the first batch was asked for, on this rank.
    """

    images: int = 0
    failed: int = 0
    truncated: int = 0
    computed: int = 0
    extrapolated: int = 0
    seconds: float = 0.0

    def summed(self, add_up: Callable[[torch.Tensor], torch.Tensor]) -> "Counts":
        """The counts of all ranks, added up by ``add_up``; the seconds stay this rank's."""
        names = [field.name for field in fields(self) if field.name != "seconds"]
        numbers = add_up(torch.tensor([getattr(self, name) for name in names], dtype=torch.int64)).tolist()
        return replace(self, **dict(zip(names, numbers, strict=True)))

    def line(self) -> str:
        """The counts for people."""
        rate = f"{self.images / self.seconds:.3g} images/s" if self.seconds else "no time"
        steps = f"{self.computed / self.images:.3g} steps computed and {self.extrapolated / self.images:.3g} extrapolated"
        return (
            f"{self.images} images in {self.seconds:.1f} s ({rate}), {self.failed} failed, {self.truncated} prompts truncated; "
            f"{steps} per image"
        )


class RunCounter(Callback):
    """Counts what this rank's group generates; only the first rank of a group counts, so that ranks can be added up.

    Attributes:
        counts: the counts so far.
    """

    def __init__(self) -> None:
        self.counts = Counts()
        self._started = 0.0

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock; models are loaded by now."""
        self._started = time.perf_counter()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: PromptBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts a batch."""
        now = replace(self.counts, seconds=time.perf_counter() - self._started)
        if trainer.strategy.group.rank == 0:  # type: ignore[attr-defined]
            now = Counts(
                now.images + len(outputs),
                now.failed + sum(result.error is not None for result in outputs),
                now.truncated + sum(result.prompt_truncated for result in outputs),
                now.computed + sum(result.steps_full + result.steps_half for result in outputs),
                now.extrapolated + sum(result.steps_skipped for result in outputs),
                now.seconds,
            )
        self.counts = now


def run_counts(trainer: Trainer) -> Counts:
    """What the trainer's run has generated on this rank."""
    return next((one.counts for one in trainer.callbacks if isinstance(one, RunCounter)), Counts())  # type: ignore[attr-defined]
