"""Lightning's Trainer, set up for a corpus."""

import logging
import platform
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from hybridiff.cluster.gpus import choose_gpus
from hybridiff.cluster.launch import Launch, count_devices
from hybridiff.cluster.signals import StopSignals
from hybridiff.config import ParallelConfig
from hybridiff.errors import UsageError
from hybridiff.runner.progress import ImageProgressBar
from hybridiff.runner.strategy import GroupStrategy

POLL_S = 0.2
_LOG = logging.getLogger(__name__)


def build_trainer(options: dict[str, Any], parallel: ParallelConfig, launch: Launch, callbacks: list[Callback]) -> Trainer:
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
    limit = options.get("limit_predict_batches")
    if not (limit is None or isinstance(limit, int)):
        raise UsageError(f"trainer.limit_predict_batches is {limit!r}; allowed: a number of batches")
    if options.get("logger") in (None, True):
        options["logger"] = CSVLogger(options.get("default_root_dir") or ".", name="lightning_logs")
    extra = [ImageProgressBar()] if options.get("enable_progress_bar") is not False else []
    options["callbacks"] = [*_as_list(options.get("callbacks")), *callbacks, *extra]
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


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


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
