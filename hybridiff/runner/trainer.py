"""Lightning's Trainer, set up for a corpus."""

import logging
import platform
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from typing import Any

from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, Trainer, callbacks, loggers
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from hybridiff.cluster.gpus import choose_gpus
from hybridiff.cluster.launch import Launch, count_devices
from hybridiff.cluster.signals import StopSignals
from hybridiff.config import ParallelConfig, TrainerConfig
from hybridiff.config.trainer import as_list
from hybridiff.errors import UsageError
from hybridiff.runner.progress import ImageProgressBar, RunCounter
from hybridiff.runner.strategy import GroupStrategy

POLL_S = 0.2
_LOG = logging.getLogger(__name__)


def build_trainer(options: dict[str, Any], parallel: ParallelConfig, launch: Launch, own: list[Callback]) -> Trainer:
    """A Trainer whose ranks form groups.

    Raises:
        UsageError: the accelerator or its devices are not there.
    """
    _quiet()
    options = dict(options) | {"num_nodes": launch.nodes}
    options["devices"] = count_devices(options.get("devices"), launch)
    order = choose_gpus(options, parallel.group_size)
    if order is not None:
        options["devices"] = list(order.gpus)
        if launch.rank % launch.local_world_size == 0:
            _LOG.warning("GPUs of %s: %s", platform.node(), order.describe())
    if options.get("logger") is True:
        options["logger"] = CSVLogger(options.get("default_root_dir") or ".", name="lightning_logs")
    extra: list[Callback] = [RunCounter()]
    extra += [ImageProgressBar()] if options.get("enable_progress_bar") is not False else []
    options["callbacks"] = [*options.get("callbacks", []), *own, *extra]
    slurm = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()  # torchrun under srun counts its own ranks
    try:
        return Trainer(
            **options,
            strategy=GroupStrategy(parallel.group_size, parallel.timeout_s, parallel.across_nodes),
            plugins=[SLURMEnvironment(auto_requeue=False)] if slurm else None,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        raise UsageError(f"trainer: {' '.join(str(error).split())}") from error


def lightning_options(trainer: TrainerConfig) -> dict[str, Any]:
    """The options of Lightning's ``Trainer``, with loggers and callbacks made from their class paths.

    Raises:
        UsageError: a class can't be imported, is none, or does not take its init_args.
    """
    options = {field.name: getattr(trainer, field.name) for field in fields(trainer)}
    options["callbacks"] = [_instance("callbacks", given, Callback) for given in as_list(trainer.callbacks)]
    made = [_instance("logger", given, Logger) for given in as_list(trainer.logger)]
    return options | {"logger": made or trainer.logger is True}


def _instance(option: str, given: str | dict[str, Any], kind: type) -> Any:
    """An object of a class that is given by its path, or by its name where Lightning has it."""
    spec = {"class_path": given, "init_args": {}} if isinstance(given, str) else given
    path, home = str(spec["class_path"]), loggers if kind is Logger else callbacks
    name = f"trainer.{option}"
    reader = ArgumentParser(exit_on_error=False)
    reader.add_subclass_arguments(kind, option)
    try:
        made = reader.parse_object({option: {**spec, "class_path": path if "." in path else f"{home.__name__}.{path}"}})
        return reader.instantiate_classes(made)[option]
    except (Exception, SystemExit) as error:  # whatever the class raises on what it was given
        reason = " ".join(str(error).split())
        raise UsageError(
            f"{name} is {path!r}; allowed: a {kind.__name__} that can be made, not one like this ({reason})"
        ) from error


@contextmanager
def ctrl_c() -> Iterator[None]:
    """Raises ``KeyboardInterrupt`` where Lightning ends the process after one."""
    try:
        yield
    except SystemExit as stopped:
        if isinstance(stopped.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stopped
        raise


def children(trainer: Trainer) -> list["subprocess.Popen[bytes]"]:
    """The ranks that Lightning has started from this one."""
    return list(getattr(trainer.strategy.launcher, "procs", []))


def wait_for_children(trainer: Trainer, signals: StopSignals) -> None:
    """Waits for ranks that Lightning itself started on this machine, and fails as they failed; tells them of a signal."""
    waiting = children(trainer)
    told = False
    while waiting:
        if signals.asked() and not told:
            told = True
            for process in waiting:
                process.terminate()
        with suppress(subprocess.TimeoutExpired):
            code = waiting[0].wait(POLL_S)
            waiting.pop(0)
            if code:
                raise SystemExit(code)


def started_by_lightning(trainer: Trainer) -> bool:
    """Whether another rank of Lightning's has started this one."""
    environment: Any = trainer.strategy.cluster_environment  # type: ignore[attr-defined]
    return isinstance(environment, LightningEnvironment) and trainer.local_rank > 0


def _quiet() -> None:
    """Silences what Lightning says of training runs: advice on workers, samplers and lengths that this job settles itself."""
    patterns = (
        "does not have many workers",
        "Couldn't infer the batch indices",
        "IterableDataset. has .__len__. defined",
        "srun.*command is available",
        "isinstance.treespec",
    )
    for pattern in patterns:
        warnings.filterwarnings("ignore", f".*{pattern}")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
