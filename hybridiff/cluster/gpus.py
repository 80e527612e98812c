"""The GPUs of this node: whether its ranks fit them, and which of them form groups."""

import os
import platform
from collections.abc import Mapping
from typing import Any

import torch

from hybridiff.cluster.launch import Launch
from hybridiff.cluster.topology import Placement, ask_links, place, visible_links
from hybridiff.config import ParallelConfig
from hybridiff.errors import UsageError

GPU_ACCELERATORS = ("auto", "gpu", "cuda", None)


def check_gpus(gpus: int, ranks: int, group_size: int, leave_idle: bool) -> None:
    """Refuses ranks that do not fit the GPUs of a node.

    Raises:
        UsageError: there are fewer GPUs than ranks, or GPUs would idle and ``leave_idle`` is not set; naming the choices.
    """
    if gpus < ranks:
        raise UsageError(f"a node has {ranks} ranks, and each sees {gpus} GPUs; allowed: as many GPUs, all seen by every rank")
    if leave_idle:
        return
    fit = gpus - gpus % group_size
    if fit < gpus:
        choice = f"parallel.group_size 1, or {fit} ranks on a node and parallel.leave_idle true"
        raise UsageError(f"a node has {gpus} GPUs, which do not split into groups of {group_size}; allowed: {choice}")
    if gpus > ranks:
        raise UsageError(f"a node has {gpus} GPUs and {ranks} ranks; allowed: {gpus} ranks, or parallel.leave_idle true")


def check_node(launch: Launch, parallel: ParallelConfig, accelerator: Any, environment: Mapping[str, str] = os.environ) -> None:
    """Refuses ranks of a SLURM step that do not fit the GPUs of their node; elsewhere a node may be shared.

    Raises:
        UsageError: naming the numbers and the choices.
    """
    if accelerator in GPU_ACCELERATORS and torch.cuda.is_available() and "SLURM_STEP_ID" in environment:
        check_gpus(torch.cuda.device_count(), launch.local_world_size, parallel.group_size, parallel.leave_idle)


def choose_gpus(options: dict[str, Any], group_size: int, environment: Mapping[str, str] = os.environ) -> Placement | None:
    """The GPUs of this node, those with the fastest links together, in their own order if the links are not known.

    None where there is no choice: without GPUs or with too few, in groups of 1, or where ``trainer.devices`` names them.

    Raises:
        UsageError: the GPUs do not answer.
    """
    ranks, gpus = options["devices"], torch.cuda.device_count()
    cpu = options.get("accelerator", "auto") not in GPU_ACCELERATORS
    if not isinstance(ranks, int) or gpus < ranks or group_size == 1 or cpu:
        return None
    links = visible_links(ask_links(), environment)
    if len(links) != gpus:
        return Placement(tuple(range(ranks)), group_size, idle=tuple(range(ranks, gpus)))
    return place(links, ranks, group_size)


def device_name(accelerator: str) -> str:
    """What the images are drawn on: a GPU's name, or the kind of CPU."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu {platform.machine()}" if accelerator in ("auto", "cpu", "gpu", "cuda") else accelerator
