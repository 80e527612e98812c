"""The section ``trainer``."""

import os
from dataclasses import dataclass
from typing import Any, Literal, get_args

from hybridiff.errors import UsageError, require, require_choice
from hybridiff.secrets import redact

Profiler = Literal["simple", "advanced", "pytorch"]


@dataclass(frozen=True)
class TrainerConfig:
    """Options of Lightning's Trainer.

    Args:
        accelerator: hardware that the ranks run on: auto, cpu, gpu, or another of Lightning's.
        devices: ranks on each node, or a list of the devices' indices; auto: as many as the launcher has started, else one.
        num_nodes: number of nodes.
        logger: Lightning logger, or a list of them: a class path, or class_path with init_args; true: CSV files below
            default_root_dir.
        callbacks: Lightning callbacks, given as loggers are; modules in the working directory are found. A method
            on_result(result) gets each result.
        limit_predict_batches: number of batches after which each group stops.
        enable_progress_bar: whether to show images/s and the time left.
        deterministic: whether PyTorch must use deterministic algorithms; warn: only warns where there is none.
        benchmark: whether cuDNN chooses its algorithms by measuring them.
        profiler: Lightning profiler.
        default_root_dir: directory for what loggers and profilers write; by default the working directory.
    """

    accelerator: str = "auto"
    devices: int | str | list[int] = "auto"
    num_nodes: int = 1
    logger: bool | str | dict[str, Any] | list[str | dict[str, Any]] = False
    callbacks: str | dict[str, Any] | list[str | dict[str, Any]] | None = None
    limit_predict_batches: int | None = None
    enable_progress_bar: bool = True
    deterministic: bool | Literal["warn"] | None = None
    benchmark: bool | None = None
    profiler: Profiler | None = None
    default_root_dir: str | None = None

    def __post_init__(self) -> None:
        require(bool(self.accelerator), "trainer.accelerator", self.accelerator, "auto, cpu, gpu, or another of Lightning's")
        require(self.num_nodes >= 1, "trainer.num_nodes", self.num_nodes, "1 or more")
        limit = self.limit_predict_batches
        require(limit is None or limit >= 0, "trainer.limit_predict_batches", limit, "0 batches or more")
        root = self.default_root_dir
        is_file = root is not None and os.path.exists(root) and not os.path.isdir(root)
        require(root != "" and not is_file, "trainer.default_root_dir", root, "a directory, there or new, for logs and profiles")
        if self.profiler is not None:
            require_choice("trainer.profiler", self.profiler, get_args(Profiler))
        for name in ("logger", "callbacks"):
            for given in as_list(getattr(self, name)):
                is_class = isinstance(given, str) and given != ""
                is_spec = isinstance(given, dict) and isinstance(given.get("class_path"), str) and set(given) <= SPEC
                require(is_class or is_spec, f"trainer.{name}", given, "a class path, or class_path with init_args")
        for given in as_list(self.logger):
            _refuse_secrets(given.get("init_args") if isinstance(given, dict) else None)


SPEC = {"class_path", "init_args"}


def _refuse_secrets(init_args: Any) -> None:
    """Refuses secrets that a logger writes into names of its files and of its metrics.

    Raises:
        UsageError: names the option.
    """
    given = init_args if isinstance(init_args, dict) else {}
    for name in ("name", "version", "prefix"):
        if redact(given.get(name)) != given.get(name):
            allowed = "a text without one, as the logger writes it; credentials come from the environment"
            raise UsageError(f"trainer.logger.{name} holds a secret; allowed: {allowed}")


def as_list(given: Any) -> list[Any]:
    """Loggers or callbacks as a list, whichever way they are given; true and false give none."""
    return list(given) if isinstance(given, list) else [] if given is None or isinstance(given, bool) else [given]
