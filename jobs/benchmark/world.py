"""All ranks of a benchmark, and their groups."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from hybridiff.errors import UsageError
from hybridiff.parallel import Group, join_group

TIMEOUT_S = 900.0


@dataclass(frozen=True)
class World:
    """This rank's place among all that torchrun started; a process started alone is a world of one.

    Args:
        rank: From 0.
        size: Ranks in all.
        device: This rank's.
    """

    rank: int
    size: int
    device: torch.device

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self.size > 1:
            dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on all ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def groups(self, sizes: Iterable[int]) -> dict[int, Group]:
        """This rank's group of each size; made once, on all ranks alike.

        Raises:
            UsageError: the ranks do not split into groups of a size.
        """
        wanted = sorted(set(sizes))
        for size in wanted:
            if self.size % size:
                hint = f"torchrun --nproc-per-node {max(wanted)} starts as many ranks as the largest group needs"
                raise UsageError(f"rows.group_size is {size} with timing; allowed: a divisor of the {self.size} ranks ({hint})")
        return {size: join_group(size, TIMEOUT_S) for size in wanted}

    def leave(self) -> None:
        """Ends the process group, on all ranks."""
        if dist.is_initialized():
            dist.destroy_process_group()


def enter_world(device: str, rank: int, size: int, local_size: int) -> World:
    """Joins the ranks that torchrun started; more ranks than GPUs share them, over gloo.

    Args:
        device: cpu or cuda.
        rank: This process's, from 0.
        size: Ranks in all.
        local_size: Ranks on each node.

    Raises:
        UsageError: there is no GPU where one is asked for.
    """
    gpus = torch.cuda.device_count()
    if device == "cuda" and not gpus:
        raise UsageError("subject.device is 'cuda'; allowed: cpu, as there is no GPU")
    chosen = torch.device("cuda", rank % local_size % gpus) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(chosen)
    if size > 1 and not dist.is_initialized():
        backend = "nccl" if device == "cuda" and local_size <= gpus else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=TIMEOUT_S))
    return World(rank, size, chosen)
