"""Lightning's Trainer, set up for a corpus: ranks in groups, own handlers of signals, loggers and callbacks by class path."""

import logging
import platform
import re
import subprocess
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer, callbacks, loggers
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from hybridiff.cluster.gpus import choose_gpus
from hybridiff.cluster.launch import Launch, count_devices
from hybridiff.cluster.signals import StopSignals
from hybridiff.config import ParallelConfig, TrainerConfig
from hybridiff.config.trainer_config import as_list
from hybridiff.errors import UsageError, require
from hybridiff.parallel import Group, join_group
from hybridiff.runner.counts import ImageProgressBar

POLL_S = 0.2
_LOG = logging.getLogger(__name__)


def build_trainer(
    options: dict[str, Any],
    parallel: ParallelConfig,
    launch: Launch,
    own: list[Callback],
    bar: type[TQDMProgressBar] = ImageProgressBar,
) -> Trainer:
    """A Trainer whose ranks form groups.

    Args:
        options: options of Lightning's ``Trainer``.
        parallel: how ranks form groups.
        launch: ranks of the job.
        own: callbacks of the loop.
        bar: class of its progress bar.

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
    bars = [bar()] if options.get("enable_progress_bar") is not False else []
    options["callbacks"] = [*options.get("callbacks", []), *own, *bars]
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
    except Exception as error:  # whatever Lightning raises on accelerators and devices that it or the machine has not
        given = f"trainer.accelerator is {options['accelerator']!r} and trainer.devices {options['devices']!r}"
        raise UsageError(f"{given}: {' '.join(str(error).split())}") from error


def lightning_options(trainer: TrainerConfig) -> dict[str, Any]:
    """The options of Lightning's ``Trainer``, with the objects that loggers and callbacks name.

    Raises:
        UsageError: a class can't be imported, is of another kind, or does not take its init_args.
    """
    options = {field.name: getattr(trainer, field.name) for field in fields(trainer)}
    options["callbacks"] = [_instance("callbacks", given, Callback) for given in as_list(trainer.callbacks)]
    made = [_instance("logger", given, Logger) for given in as_list(trainer.logger)]
    return options | {"logger": made or trainer.logger is True}


def _instance(option: str, given: str | dict[str, Any], kind: type) -> Any:
    """An object of a class, given by its path or by the name of one of Lightning's."""
    spec = {"class_path": given, "init_args": {}} if isinstance(given, str) else given
    path, home = str(spec["class_path"]), loggers if kind is Logger else callbacks
    reader = ArgumentParser(exit_on_error=False)
    reader.add_subclass_arguments(kind, option, fail_untyped=False)
    try:
        made = reader.parse_object({option: {**spec, "class_path": path if "." in path else f"{home.__name__}.{path}"}})
        return reader.instantiate(made)[option]
    except (Exception, SystemExit) as error:  # the class may raise anything on its arguments
        reason = " ".join(str(error).split())
        pattern = r"Errors: - (?:Problem with given class_path '[^']*': )?(.*) - Expected a <class 'NoneType'>"
        if found := re.search(pattern, reason):  # what jsonargparse says of the class, without its own words around it
            reason = found[1]
        allowed = f"the class path of a {kind.__name__}, with init_args that it takes"
        raise UsageError(f"trainer.{option} is {path!r}, which can't be made: {reason}; allowed: {allowed}") from error


def require_callbacks(given: Iterable[object]) -> None:
    """Raises ``UsageError`` unless all are objects of Lightning's callbacks."""
    for one in given:
        require(isinstance(one, Callback), "callbacks", one, "objects of subclasses of lightning.pytorch.Callback")


@contextmanager
def closing_process_group() -> Iterator[None]:
    """Destroys the process group that the body makes."""
    before = dist.is_initialized()
    try:
        yield
    finally:
        if dist.is_initialized() and not before:
            dist.destroy_process_group()


@contextmanager
def ctrl_c() -> Iterator[None]:
    """Raises ``KeyboardInterrupt`` where Lightning ends the process after one."""
    try:
        yield
    except SystemExit as stopped:
        if isinstance(stopped.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stopped
        raise


def wait_for_children(trainer: Trainer, signals: StopSignals) -> None:
    """Waits for ranks that Lightning started on this machine, forwards a signal to them, and exits with their exit code."""
    waiting = list(getattr(trainer.strategy.launcher, "procs", []))
    forwarded = False
    while waiting:
        if signals.asked() and not forwarded:
            forwarded = True
            for process in waiting:
                process.terminate()
        with suppress(subprocess.TimeoutExpired):
            code = waiting[0].wait(POLL_S)
            waiting.pop(0)
            if code:
                raise SystemExit(code)


def started_by_lightning(trainer: Trainer) -> bool:
    """Whether Lightning has started this process as a further rank."""
    environment: Any = trainer.strategy.cluster_environment  # type: ignore[attr-defined]
    return isinstance(environment, LightningEnvironment) and trainer.local_rank > 0


def _quiet() -> None:
    """Silences Lightning's advice on training: workers, samplers and lengths."""
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


WORLD_TIMEOUT = timedelta(days=30)  # groups wait for each other only at the start and the end, which may be days apart


class GroupStrategy(DDPStrategy):
    """Lightning's distributed strategy, with groups of consecutive ranks; its sharding by rank is not used.

    Args:
        group_size: ranks that generate one image together.
        timeout_s: seconds after which a rank gives up waiting for another of its group.
        across_nodes: whether a group may have ranks on several nodes.
    """

    def __init__(self, group_size: int, timeout_s: float, across_nodes: bool) -> None:
        super().__init__(timeout=WORLD_TIMEOUT)
        self._group_size = group_size
        self._timeout_s = timeout_s
        self._across_nodes = across_nodes
        self.group = Group()
        self._world: dist.ProcessGroup | None = None

    def setup_environment(self) -> None:
        """Joins the world's process group, then makes the groups, once and on all ranks alike."""
        super().setup_environment()
        self.group = join_group(self._group_size, self._timeout_s, self._across_nodes)
        if self.world_size > 1:  # gloo, as waiting for days must not keep a GPU busy
            self._world = dist.new_group(backend="gloo", timeout=WORLD_TIMEOUT)

    def end_together(self, signals: StopSignals, counts: Tensor) -> Tensor:
        """A barrier that ends when all ranks have reached it, one has ended, or a signal is received.

        SLURM's launcher kills a job some minutes after its first rank has ended: none may end before the slowest group.

        Returns:
            The sum of all ranks' ``counts``; this rank's own unless all have reached the barrier.
        """
        if self._world is None:
            return counts
        summed = counts.clone()
        arrival = dist.all_reduce(summed, group=self._world, async_op=True)
        while not arrival.is_completed() and not signals.asked():
            signals.sleep(0.05)
        if not arrival.is_completed():
            return counts
        with suppress(RuntimeError):  # another rank has gone
            arrival.wait()
            return summed
        return counts


class SignalCallback(Callback):
    """Restores the run's signal handlers after Lightning has set its own, whose SIGTERM handler waits for all ranks."""

    def __init__(self, signals: StopSignals) -> None:
        self._signals = signals

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called right after Lightning has set its handlers, when all ranks have connected."""
        self._signals.generating = True
        if trainer.received_sigterm:  # by Lightning's handler, while the ranks waited for each other
            self._signals.ask("SIGTERM")
        self._signals.install()
