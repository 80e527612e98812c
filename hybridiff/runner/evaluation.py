"""An evaluation as a Lightning predict loop: each rank has its share of the shards, and the first writes the results."""

import logging
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from torch.utils.data import DataLoader

from hybridiff.cluster.exit_codes import AGAIN, DONE, NOT_DONE, NOT_MET
from hybridiff.cluster.launch import restoring_launcher_variables
from hybridiff.cluster.signals import RESUMABLE, StopSignals
from hybridiff.config import ParallelConfig, TrainerConfig
from hybridiff.corpus.card import write_evaluations
from hybridiff.evaluate.batches import batches
from hybridiff.evaluate.measure import ImageBatch, Measurements
from hybridiff.evaluate.networks.scorers import measurements
from hybridiff.evaluate.parts import Unit, write_part
from hybridiff.evaluate.prepared import Prepared
from hybridiff.evaluate.report.report_page import write_report
from hybridiff.evaluate.result import Result, finished_result, remove_parts, write_result
from hybridiff.runner.counts import refresh_s
from hybridiff.runner.data import BatchStream
from hybridiff.runner.job import check_launch
from hybridiff.runner.trainer import (
    SignalCallback,
    build_trainer,
    closing_process_group,
    ctrl_c,
    lightning_options,
    started_by_lightning,
    wait_for_children,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluated:
    """How an evaluation ended on one rank.

    Args:
        code: exit code.
        results: results of the corpora, in order, on the first rank once they are complete.
        lines: what the command prints.
    """

    code: int
    results: tuple[Result, ...] = ()
    lines: tuple[str, ...] = ()


class EvaluationData(LightningDataModule):
    """The images of the units that are this rank's: every so many of those without a part.

    Args:
        prepared: the checked call.
        signals: signals that end the run.

    Attributes:
        units: this rank's units.
        stopped: whether a signal has left some of them.
    """

    def __init__(self, prepared: Prepared, signals: StopSignals) -> None:
        super().__init__()
        self.prepared, self._signals = prepared, signals
        self.units: list[Unit] = []
        self.stopped = False

    def setup(self, stage: str) -> None:
        """Rank 0 lists what is done once for all ranks, so that each unit is one rank's."""
        assert self.trainer is not None
        strategy: Any = self.trainer.strategy
        pending = strategy.broadcast(pending_units(self.prepared) if strategy.is_global_zero else [])
        self.units = pending[strategy.global_rank :: strategy.world_size]

    @property
    def images(self) -> int:
        """Number of rows of this rank's units, of which those of a reference in tars or Parquet are not counted before."""
        return sum(self.prepared.images_of(unit.place).rows(unit.index) for unit in self.units)

    def predict_dataloader(self) -> DataLoader[ImageBatch]:
        """The stream of batches, without a sampler of Lightning's."""
        return DataLoader(BatchStream(self._batches, 1 << 40), batch_size=None)

    def transfer_batch_to_device(self, batch: ImageBatch, device: Any, dataloader_idx: int) -> ImageBatch:
        """Networks get their images preprocessed, which happens on the CPU."""
        return batch

    def _batches(self) -> Iterator[ImageBatch]:
        for unit in self.units:
            with closing(batches(self.prepared, unit)) as images:  # type: ignore[type-var]
                for batch in images:
                    if self._signals.asked():
                        self.stopped = True
                        return
                    yield batch


class EvaluationModule(LightningModule):
    """Measures batches and writes each unit's part when it is complete.

    Args:
        prepared: the checked call.
    """

    def __init__(self, prepared: Prepared) -> None:
        super().__init__()
        self._prepared = prepared
        self._measure: Measurements | None = None
        self._columns: list[dict[str, list[Any]]] = []

    def on_predict_start(self) -> None:
        """Loads the networks on this rank's device, if it has any units."""
        if self.trainer.datamodule.units:  # type: ignore[attr-defined]
            self._measure = measurements(self._prepared, self.device)

    @torch.inference_mode()
    def predict_step(self, batch: ImageBatch, batch_idx: int) -> int:
        """Number of the batch's rows, which are measured."""
        assert self._measure is not None
        self._columns.append(self._measure(batch))
        if batch.last:
            write_part(*self._prepared.part(batch.unit), joined(self._columns))
            self._columns = []
        return len(batch.images)


class EvaluationBar(TQDMProgressBar):
    """Images that this rank has evaluated."""

    def init_predict_tqdm(self) -> Tqdm:
        """A bar over the rows of this rank's units."""
        rows: int = self.trainer.datamodule.images  # type: ignore[attr-defined]
        off = self.is_disabled or not rows
        return Tqdm(desc="evaluating", total=rows or None, unit="image", disable=off, **refresh_s())

    def on_predict_batch_start(self, *_: Any, **__: Any) -> None:
        """Lightning's bar would restart here to count batches."""

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Counts the batch's images."""
        self.predict_progress_bar.update(outputs)


def evaluate(prepared: Prepared, options: TrainerConfig | None = None, launcher: int | None = None) -> Evaluated:
    """Evaluates corpora.

    Args:
        prepared: the checked call.
        options: options of Lightning's ``Trainer``.
        launcher: the process that has started this one as a rank, which it should not outlive; None if there is none.

    Raises:
        UsageError: the accelerator is not there, or an own class does not work.
        StorageError: images can't be read, or results not written.
    """
    options = options or TrainerConfig()
    launch = check_launch(options, ParallelConfig(), None)
    alone = closing_process_group() if launch.world_size == 1 else nullcontext()  # other ranks may still use theirs
    with restoring_launcher_variables(), alone, StopSignals(launcher) as signals:
        data, module = EvaluationData(prepared, signals), EvaluationModule(prepared)
        trainer = build_trainer(lightning_options(options), ParallelConfig(), launch, [SignalCallback(signals)], EvaluationBar)
        with ctrl_c():
            trainer.predict(module, datamodule=data, return_predictions=False)
        ended = _finish(prepared, trainer, data, signals)
        wait_for_children(trainer, signals)
    return Evaluated(DONE) if started_by_lightning(trainer) else ended


def pending_units(prepared: Prepared) -> list[Unit]:
    """The units that have no part yet, in order; none of corpora whose result is written, and no reference if all are."""
    finished = {place for place in range(len(prepared.targets)) if finished_result(prepared, place)}
    if len(finished) == len(prepared.targets):
        return []
    there: dict[str, set[str]] = {}
    pending = []
    for unit in prepared.units():
        folder, path = prepared.part(unit)
        directory, _, name = path.rpartition("/")
        if f"{folder.root}/{directory}" not in there:
            there[f"{folder.root}/{directory}"] = set(folder.names(directory))
        if unit.place not in finished and name not in there[f"{folder.root}/{directory}"]:
            pending.append(unit)
    return pending


def joined(batches: list[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    """Columns of consecutive batches, with None where a batch lacks a column."""
    rows = [max(map(len, batch.values()), default=0) for batch in batches]
    names = dict.fromkeys(name for batch in batches for name in batch)
    return {
        name: [value for batch, count in zip(batches, rows, strict=True) for value in batch.get(name, [None] * count)]
        for name in names
    }


def _finish(prepared: Prepared, trainer: Trainer, data: EvaluationData, signals: StopSignals) -> Evaluated:
    """Waits for all ranks; then the first writes the results, and all learn the exit code."""
    if data.stopped:
        return Evaluated(AGAIN, lines=(f"stopped by {signals.received}; {RESUMABLE}",))
    strategy: Any = trainer.strategy
    together = partial(strategy.end_together, signals)
    arrived = int(together(torch.ones(1, dtype=torch.int64)).item())
    if signals.asked() or (arrived < trainer.world_size and trainer.world_size > 1):
        return Evaluated(AGAIN, lines=(f"stopped by {signals.received or 'the end of another rank'}; {RESUMABLE}",))
    ended = _write_results(prepared) if strategy.is_global_zero else Evaluated(DONE)
    code = int(together(torch.tensor([ended.code], dtype=torch.int64)).item())
    return ended if strategy.is_global_zero else Evaluated(code)


def _result(prepared: Prepared, place: int) -> Result | None:
    """The result of a corpus; None if its parts are gone and there is none."""
    try:
        return finished_result(prepared, place) or write_result(prepared, place)
    except FileNotFoundError:  # the same command, run twice at once, has written the result and removed the parts
        return finished_result(prepared, place)


def _write_results(prepared: Prepared) -> Evaluated:
    """The results of all corpora, and whether they meet what is required."""
    places = range(len(prepared.targets))
    results = [] if pending_units(prepared) else [one for place in places if (one := _result(prepared, place)) is not None]
    if len(results) < len(places):
        return Evaluated(NOT_DONE, lines=("parts of the evaluation were removed while it ran; run it again",))
    remove_parts(prepared)
    for target in prepared.targets if prepared.request.output is None else ():
        write_evaluations(target.rows.corpus)
    for folder in {target.folder.root: target.folder for target in prepared.targets}.values():
        write_report(folder)
    lines = [line for result in results for line in result.lines()]
    failures = []
    if (requirement := prepared.request.requirement) is not None:
        for result in results:
            failures += [f"{result.document['corpus']}: {line}" for line in requirement.failures(result.document)]
    lines += [f"not met:      {line}" for line in failures]
    return Evaluated(NOT_MET if failures else DONE, tuple(results), tuple(lines))
