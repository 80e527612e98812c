"""The GPUs of this node: whether its ranks fit them, and in which order ranks take them.

Consecutive ranks form a group. Where NVML can be asked (package nvidia-ml-py) and NVLink connects only some pairs of GPUs, they
are reordered so that as many groups as possible have NVLink between all their members; else they keep the order of CUDA.
"""

import importlib
import platform
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any

import torch

from hybridiff.cluster.launch import Launch, in_slurm_step
from hybridiff.config import ParallelConfig
from hybridiff.errors import ServiceError, UsageError

GPU_ACCELERATORS = ("auto", "gpu", "cuda", None)
Pairs = frozenset[tuple[int, int]]  # GPUs by CUDA's index, the smaller first


@dataclass(frozen=True)
class GpuOrder:
    """The GPUs of a node in the order of its ranks.

    Args:
        gpus: CUDA indices, one per rank; consecutive ones form groups.
        group_size: GPUs of a group.
        nvlink: pairs of GPUs that NVLink connects; None if unknown.
        idle: CUDA indices of GPUs without a rank.
        reason: why the pairs are unknown.
    """

    gpus: tuple[int, ...]
    group_size: int
    nvlink: Pairs | None = None
    idle: tuple[int, ...] = ()
    reason: str = ""

    def describe(self) -> str:
        """One line for the log, such as "0+2 (NVLink), 1+3 (NVLink); idle: 4"."""
        starts = range(0, len(self.gpus), self.group_size)
        groups = [self.gpus[start : start + self.group_size] for start in starts]
        names = ["+".join(map(str, group)) + (" (NVLink)" if self._connected(group) else "") for group in groups]
        unknown = f"; order kept, as links between GPUs are unknown: {self.reason}" if self.nvlink is None else ""
        return ", ".join(names) + unknown + (f"; idle: {', '.join(map(str, self.idle))}" if self.idle else "")

    def _connected(self, group: tuple[int, ...]) -> bool:
        return self.nvlink is not None and is_connected(group, self.nvlink)


def check_gpus(gpus: int, ranks: int, group_size: int, leave_idle: bool, ranks_option: str = "") -> None:
    """Refuses ranks that do not fit the GPUs of a node.

    Args:
        gpus: number of GPUs that each rank sees.
        ranks: number of ranks on the node.
        group_size: ranks of a group.
        leave_idle: whether some GPUs may have no rank.
        ranks_option: how the caller sets the number of ranks, for the message.

    Raises:
        UsageError: there are fewer GPUs than ranks, or GPUs would be idle and ``leave_idle`` is not set; naming the choices.
    """
    if gpus < ranks:
        raise UsageError(f"a node has {ranks} ranks, and each sees {gpus} GPUs; allowed: as many GPUs, all seen by every rank")
    if leave_idle:
        return
    option = f"{ranks_option} " if ranks_option else ""
    fit = gpus - gpus % group_size
    if fit < gpus:
        fewer = f"{option}{fit}" if option else f"{fit} ranks on a node"
        choice = f"parallel.group_size 1, or {fewer} and parallel.leave_idle true"
        raise UsageError(f"a node has {gpus} GPUs, which do not split into groups of {group_size}; allowed: {choice}")
    if gpus > ranks:
        all_of_them = f"{option}{gpus}" if option else f"{gpus} ranks"
        raise UsageError(f"a node has {gpus} GPUs and {ranks} ranks; allowed: {all_of_them}, or parallel.leave_idle true")


def check_node(launch: Launch, parallel: ParallelConfig, accelerator: Any) -> None:
    """Refuses ranks of a SLURM step that do not fit the GPUs of their node; elsewhere a node may be shared.

    Raises:
        UsageError: naming the numbers and the choices.
    """
    if accelerator in GPU_ACCELERATORS and torch.cuda.is_available() and in_slurm_step():
        check_gpus(torch.cuda.device_count(), launch.local_world_size, parallel.group_size, parallel.leave_idle)


def choose_gpus(options: dict[str, Any], group_size: int) -> GpuOrder | None:
    """The GPUs of this node in the order of its ranks; every rank of the node gets the same answer.

    None where there is no choice: without GPUs or with too few, in groups of 1, or where ``trainer.devices`` names them.

    Args:
        options: the trainer's options, ``devices`` a number of ranks or a list of GPUs.
        group_size: ranks of a group.

    Raises:
        ServiceError: the GPUs do not answer.
    """
    ranks, gpus = options["devices"], torch.cuda.device_count()
    cpu = options.get("accelerator", "auto") not in GPU_ACCELERATORS
    if not isinstance(ranks, int) or gpus < ranks or group_size == 1 or cpu:
        return None
    nvlink, reason = nvlink_pairs([str(torch.cuda.get_device_properties(index).uuid) for index in range(gpus)])
    order = order_gpus(gpus, ranks, group_size, nvlink or frozenset())
    return GpuOrder(order, group_size, nvlink, tuple(gpu for gpu in range(gpus) if gpu not in order), reason)


def nvlink_pairs(uuids: list[str]) -> tuple[Pairs | None, str]:
    """Pairs of GPUs that NVLink connects, directly or through NVSwitch; None and the reason where NVML is not there.

    Args:
        uuids: UUIDs of the GPUs that this process sees, in CUDA's order.

    Raises:
        ServiceError: NVML is there and a GPU does not answer; other ranks may have had an answer and would choose another order.
    """
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None, "no pynvml (pip install 'hybridiff[nvlink]')"
    try:
        nvml.nvmlInit()
    except (nvml.NVMLError_LibraryNotFound, nvml.NVMLError_DriverNotLoaded) as error:
        return None, str(error)
    except nvml.NVMLError as error:
        raise _no_answer(error) from error
    try:
        handles = [nvml.nvmlDeviceGetHandleByUUID(uuid if uuid[:4] in ("GPU-", "MIG-") else f"GPU-{uuid}") for uuid in uuids]
        connected = (pair for pair in combinations(range(len(uuids)), 2) if _has_nvlink(nvml, *(handles[i] for i in pair)))
        return frozenset(connected), ""
    except nvml.NVMLError as error:
        raise _no_answer(error) from error
    finally:
        nvml.nvmlShutdown()


def order_gpus(gpus: int, ranks: int, group_size: int, nvlink: Pairs) -> tuple[int, ...]:
    """The GPUs for ``ranks`` ranks: an order with as many connected groups as possible, lowest indices first.

    Args:
        gpus: number of GPUs.
        ranks: number of ranks, divisible by ``group_size`` and at most ``gpus``.
        group_size: ranks of a group.
        nvlink: pairs that NVLink connects.
    """
    if not nvlink:
        return tuple(range(ranks))

    @cache
    def best(left: tuple[int, ...], idle: int) -> tuple[int, tuple[int, ...]]:
        """Number of connected groups and the order, for the GPUs that are left, of which ``idle`` get no rank."""
        if len(left) <= idle:
            return 0, ()
        first, others, possible = left[0], left[1:], (len(left) - idle) // group_size
        found: tuple[int, tuple[int, ...]] = (-1, ())
        for members in combinations(others, group_size - 1):
            group = (first, *members)
            connected, order = best(tuple(gpu for gpu in others if gpu not in members), idle)
            connected += is_connected(group, nvlink)
            if connected > found[0]:
                found = connected, (*group, *order)
            if connected == possible:
                return found
        without_first = best(others, idle - 1) if idle else found
        return without_first if without_first[0] > found[0] else found

    return best(tuple(range(gpus)), gpus - ranks)[1]


def is_connected(group: tuple[int, ...], nvlink: Pairs) -> bool:
    """Whether NVLink connects all pairs of a group."""
    return all(pair in nvlink for pair in combinations(sorted(group), 2))


def device_type(accelerator: str) -> str:
    """The type of the device that generates the images: cuda, cpu, or another accelerator's name."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "cuda"
    return "cpu" if accelerator in ("auto", "cpu", "gpu", "cuda") else accelerator


def device_name(accelerator: str) -> str:
    """What generates the images: a GPU's name, or the kind of CPU."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu {platform.machine()}" if accelerator in ("auto", "cpu", "gpu", "cuda") else accelerator


def _has_nvlink(nvml: Any, first: Any, second: Any) -> bool:
    try:
        status = nvml.nvmlDeviceGetP2PStatus(first, second, nvml.NVML_P2P_CAPS_INDEX_NVLINK)
    except nvml.NVMLError_NotSupported:  # a kind of GPU without NVLink
        return False
    return bool(status == nvml.NVML_P2P_STATUS_OK)


def _no_answer(error: Exception) -> ServiceError:
    return ServiceError(f"NVML: {error}; use a node whose GPUs answer, or trainer.devices as a list of them, such as 0,1")
