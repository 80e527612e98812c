"""Groups: the ranks that generate one image together. Groups are data-parallel replicas and never communicate with each other."""

import atexit
import platform
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from hybridiff.errors import UsageError, require

CONTROL_TIMEOUT = timedelta(minutes=30)  # ranks load their models at different speeds


@dataclass(frozen=True)
class Group:
    """One rank's view of its group.

    Args:
        size: ranks in the group.
        rank: this rank in its group, from 0.
        index: number of the group, from 0.
        count: number of groups.
        process_group: process group of the tensor collectives; None in a group of 1.
        control_group: gloo process group of barriers and integers, with a timeout of 30 minutes; None in a group of 1.
        timeout_s: seconds after which a rank gives up waiting for its peers.
    """

    size: int = 1
    rank: int = 0
    index: int = 0
    count: int = 1
    process_group: dist.ProcessGroup | None = None
    control_group: dist.ProcessGroup | None = None
    timeout_s: float = 120.0

    @property
    def leader(self) -> bool:
        """Whether this is the first rank of its group."""
        return self.rank == 0


def check_world(world_size: int, group_size: int, local_world_size: int | None = None) -> None:
    """Checks that the ranks split into groups within nodes.

    Args:
        world_size: number of ranks.
        group_size: ranks per group.
        local_world_size: ranks per node; None if groups may span nodes.

    Raises:
        UsageError: they do not; names the sizes and what would fit.
    """
    hint = f"; torchrun --nproc-per-node {group_size}, or --trainer.devices {group_size}, starts more" if world_size == 1 else ""
    allowed = f"a divisor of the world size, which is {world_size}{hint}"
    require(world_size % group_size == 0, "parallel.group_size", group_size, allowed)
    if local_world_size is not None and local_world_size % group_size:
        raise UsageError(
            f"parallel.group_size is {group_size!r}; allowed: a divisor of the {local_world_size} ranks of a node, or "
            "parallel.across_nodes true"
        )


def join_group(size: int, timeout_s: float, across_nodes: bool = False) -> Group:
    """Creates all groups and returns this rank's; consecutive ranks form a group.

    Needs an initialised process group unless ``size`` is 1. A collective operation: every rank of the world calls it once, at
    most 30 minutes apart.

    Args:
        size: ranks per group.
        timeout_s: seconds after which a rank gives up waiting for its peers later on.
        across_nodes: whether a group may have ranks on several nodes.

    Raises:
        UsageError: the world does not split into groups; or one has ranks on several nodes, and ``across_nodes`` is false.
    """
    if not dist.is_initialized():
        check_world(1, size)
        return Group()
    world_size, rank = dist.get_world_size(), dist.get_rank()
    check_world(world_size, size)
    if size > 1 and not across_nodes:
        check_nodes(size)
    groups: dict[int, tuple[dist.ProcessGroup | None, dist.ProcessGroup | None]] = {rank // size: (None, None)}
    for index in range(world_size // size if size > 1 else 0):
        ranks = list(range(index * size, (index + 1) * size))
        # Gloo, as it must not hold a device; created first, so that ranks create the second one at about the same time
        control_group = dist.new_group(ranks, timeout=CONTROL_TIMEOUT, backend="gloo")
        groups[index] = (dist.new_group(ranks, timeout=timedelta(seconds=timeout_s)), control_group)
    process_group, control_group = groups[rank // size]
    return Group(size, rank % size, rank // size, world_size // size, process_group, control_group, timeout_s)


def check_nodes(size: int) -> None:
    """Checks that no group of consecutive ranks spans nodes; every rank of the world calls it.

    Raises:
        UsageError: one does; names its ranks and nodes.
    """
    nodes: list[Any] = [None] * dist.get_world_size()
    world = dist.new_group(timeout=CONTROL_TIMEOUT, backend="gloo")
    dist.all_gather_object(nodes, platform.node(), group=world)
    dist.destroy_process_group(world)
    for first in range(0, len(nodes), size):
        names = list(dict.fromkeys(nodes[first : first + size]))
        if len(names) > 1:
            raise UsageError(
                f"group_size is {size}, and ranks {first} to {first + size - 1} are on the nodes {', '.join(names)}; allowed: "
                "groups inside a node, across_nodes=True, or a group= of your own"
            )


def barrier(group: Group) -> None:
    """Waits until all ranks of the group call it, for up to 30 minutes."""
    if group.control_group is not None:
        dist.barrier(group=group.control_group)


def all_reduce_max(group: Group, number: int, timeout_s: float | None = None) -> int:
    """The maximum of a number over the ranks of the group, on every rank.

    Args:
        group: this rank's group.
        number: this rank's number.
        timeout_s: seconds to wait for the other ranks; 30 minutes by default, as slow storage may hold up one of them.

    Raises:
        RuntimeError: a rank did not call it in time.
    """
    if group.control_group is None:
        return number
    numbers = torch.tensor([number], dtype=torch.int64)
    options = dist.AllreduceOptions()
    options.reduceOp = dist.ReduceOp.MAX  # type: ignore[assignment]
    # The operation's timeout: a timeout of wait() would leave it running, and the process would wait for it at its end
    options.timeout = CONTROL_TIMEOUT if timeout_s is None else timedelta(seconds=timeout_s)
    group.control_group.allreduce([numbers], options).wait()
    return int(numbers.item())


def broadcast_int(group: Group, number: int) -> int:
    """The first rank's number, on every rank of the group; waits up to 30 minutes for it."""
    if group.control_group is None:
        return number
    numbers = torch.tensor([number], dtype=torch.int64)
    dist.broadcast(numbers, group=group.control_group, group_src=0)
    return int(numbers.item())


def all_gather_int(group: Group, number: int) -> list[int]:
    """The numbers of all ranks of the group, in rank order; all ranks call it, at most ``group.timeout_s`` apart.

    Raises:
        RuntimeError: a rank did not call it in time.
    """
    if group.control_group is None:
        return [number]
    dist.monitored_barrier(group.control_group, timedelta(seconds=group.timeout_s))
    numbers = [torch.empty(1, dtype=torch.int64) for _ in range(group.size)]
    dist.all_gather(numbers, torch.tensor([number]), group=group.control_group)
    return [int(other.item()) for other in numbers]


def leave_group(group: Group) -> None:
    """Destroys the group's process groups; every rank of the group calls it."""
    for process_group in (group.process_group, group.control_group):
        if process_group is not None:
            dist.destroy_process_group(process_group)


def ensure_process_group(device: torch.device) -> None:
    """Initialises torch.distributed from torchrun's variables, unless it is initialised.

    Args:
        device: device of the pipeline: NCCL on GPUs, else gloo.

    Raises:
        UsageError: the process was not started by torchrun.
    """
    if dist.is_initialized():
        return
    if not dist.is_torchelastic_launched():
        raise UsageError(
            "there is no process group; allowed: a script started by torchrun, a call of torch.distributed.init_process_group "
            "before, or a group of 1"
        )
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, timeout=CONTROL_TIMEOUT)
    atexit.register(_leave_world)


def default_group_size(device: torch.device) -> int:
    """The group size where none is given: 2, or 1 in a world of one rank; joins the world under torchrun.

    Args:
        device: device of the pipeline.
    """
    if not dist.is_initialized():
        if not dist.is_torchelastic_launched():
            return 1
        ensure_process_group(device)
    return min(2, dist.get_world_size())


def _leave_world() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def share_random_state(group: Group, device: torch.device) -> None:
    """Copies the default random states of the group's first rank to the others, for noise sampled without a generator."""
    if group.size == 1:
        return
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    objects: list[list[torch.Tensor]] = [states]
    dist.broadcast_object_list(objects, group=group.process_group, group_src=0, device=device)
    torch.set_rng_state(objects[0][0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(objects[0][1], device)
