"""All ranks of a benchmark, their groups, and the check of the files that the first rank writes."""

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hybridiff.errors import UsageError
from hybridiff.parallel import Group, join_group

TIMEOUT_S = 900.0


@dataclass(frozen=True)
class Ranks:
    """This rank among all that torchrun started; a process started without it is the only one.

    Args:
        rank: number of this rank, from 0.
        size: number of ranks.
        device: device of this rank.
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
        """This rank's group of each size; called once, on all ranks alike.

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


def join_ranks(option: str, device: str, rank: int, size: int, local_size: int) -> Ranks:
    """Joins the ranks that torchrun started; more ranks than GPUs share them, over gloo.

    Args:
        option: name of the option that names the device.
        device: cpu or cuda.
        rank: number of this process, from 0.
        size: number of ranks.
        local_size: number of ranks on each node.

    Raises:
        UsageError: the device is cuda and there is no GPU.
    """
    gpus = torch.cuda.device_count()
    if device == "cuda" and not gpus:
        raise UsageError(f"{option} is 'cuda'; allowed: cpu, as there is no GPU")
    chosen = torch.device("cuda", rank % local_size % gpus) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(chosen)
    if size > 1 and not dist.is_initialized():
        backend = "nccl" if device == "cuda" and local_size <= gpus else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=TIMEOUT_S))
    return Ranks(rank, size, chosen)


def check_writable(paths: Mapping[str, str | None], ranks: Ranks) -> None:
    """Refuses files that cannot be written, on all ranks alike; the first rank, which writes them, tries.

    Args:
        paths: path by name of the option; None where none is given.
        ranks: all ranks; every one calls this.

    Raises:
        UsageError: a file cannot be written.
    """
    refusals = [_refusal(name, Path(path)) for name, path in paths.items() if path is not None] if ranks.rank == 0 else []
    for refusal in ranks.gather(refusals)[0]:
        if refusal is not None:
            raise UsageError(refusal)


def _refusal(name: str, path: Path) -> str | None:
    """Why a file cannot be written; it will be replaced by a new one in the same folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        reason = "it is a directory" if path.is_dir() else None
    except OSError as error:
        reason = error.strerror or str(error)
    return reason and f"{name} is {str(path)!r}; allowed: a file that can be written ({reason})"
