"""Groups: the ranks that make one image together. Groups are replicas of each other and never speak to one another."""

import atexit
import platform
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from hybridiff.errors import UsageError, require

MEETING_TIMEOUT = timedelta(minutes=30)  # ranks load their models at different speeds


@dataclass(frozen=True)
class Group:
    """One rank's view of its group.

    Args:
        size: Ranks in a group.
        rank: This rank's place in its group, from 0.
        index: The group's place among the groups, from 0.
        count: Number of groups.
        process_group: What collectives of the group run on; None in a group of 1.
        meeting: What its ranks meet on before the first collective, with patience for slow loading; None in a group of 1.
        timeout_s: Seconds after which a rank gives up waiting for its peers.
    """

    size: int = 1
    rank: int = 0
    index: int = 0
    count: int = 1
    process_group: dist.ProcessGroup | None = None
    meeting: dist.ProcessGroup | None = None
    timeout_s: float = 120.0

    @property
    def leader(self) -> bool:
        """Whether this rank speaks for its group."""
        return self.rank == 0


def check_world(world_size: int, group_size: int, local_world_size: int | None = None) -> None:
    """Refuses a number of ranks that does not split into groups, or groups that would span nodes.

    Raises:
        UsageError: naming the sizes and what would fit.
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
    """Makes all groups, on all ranks alike, and returns this rank's; consecutive ranks form a group.

    Needs an initialised process group unless ``size`` is 1. A collective operation: every rank of the world calls it once, and
    they may be 30 minutes apart. ``timeout_s`` is what a rank waits for its peers later.

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
    made: dict[int, tuple[dist.ProcessGroup | None, dist.ProcessGroup | None]] = {rank // size: (None, None)}
    for index in range(world_size // size if size > 1 else 0):
        ranks = list(range(index * size, (index + 1) * size))
        # Gloo, as a meeting must not hold a device; first, as the second is then made by ranks that have met.
        meeting = dist.new_group(ranks, timeout=MEETING_TIMEOUT, backend="gloo")
        made[index] = (dist.new_group(ranks, timeout=timedelta(seconds=timeout_s)), meeting)
    process_group, meeting = made[rank // size]
    return Group(size, rank % size, rank // size, world_size // size, process_group, meeting, timeout_s)


def check_nodes(size: int) -> None:
    """Refuses groups of consecutive ranks on several nodes, on all ranks alike; every rank of the world calls it.

    Raises:
        UsageError: naming the ranks, their nodes and the choices.
    """
    nodes: list[Any] = [None] * dist.get_world_size()
    world = dist.new_group(timeout=MEETING_TIMEOUT, backend="gloo")  # as a meeting, it must not hold a device
    dist.all_gather_object(nodes, platform.node(), group=world)
    dist.destroy_process_group(world)
    for first in range(0, len(nodes), size):
        names = list(dict.fromkeys(nodes[first : first + size]))
        if len(names) > 1:
            raise UsageError(
                f"group_size is {size}, and ranks {first} to {first + size - 1} are on the nodes {', '.join(names)}; allowed: "
                "groups inside a node, across_nodes=True, or a group= of your own"
            )


def meet(group: Group) -> None:
    """Waits until all ranks of the group are here, for up to 30 minutes."""
    if group.meeting is not None:
        dist.barrier(group=group.meeting)


def largest(group: Group, number: int, timeout_s: float | None = None) -> int:
    """The largest of the ranks' numbers, on every rank; each calls it, and waits so long for the others, or up to 30 minutes.

    Between batches one of them may be held up, such as a leader by slow storage.

    Raises:
        RuntimeError: they did not come.
    """
    if group.meeting is None:
        return number
    numbers = torch.tensor([number], dtype=torch.int64)
    options = dist.AllreduceOptions()
    options.reduceOp = dist.ReduceOp.MAX  # type: ignore[assignment]
    # Of the operation and not of a wait for it, which would leave it running, and the process waiting for it at its end.
    options.timeout = MEETING_TIMEOUT if timeout_s is None else timedelta(seconds=timeout_s)
    group.meeting.allreduce([numbers], options).wait()
    return int(numbers.item())


def tell(group: Group, number: int) -> int:
    """The leader's number, on every rank of the group; each calls it, and may wait up to 30 minutes for the leader."""
    if group.meeting is None:
        return number
    told = torch.tensor([number], dtype=torch.int64)
    dist.broadcast(told, group=group.meeting, group_src=0)
    return int(told.item())


def collect(group: Group, number: int) -> list[int]:
    """A number of each rank of the group, apart from its collectives; all call it, at most ``timeout_s`` apart.

    Raises:
        RuntimeError: they do not.
    """
    if group.meeting is None:
        return [number]
    dist.monitored_barrier(group.meeting, timedelta(seconds=group.timeout_s))
    numbers = [torch.empty(1, dtype=torch.int64) for _ in range(group.size)]
    dist.all_gather(numbers, torch.tensor([number]), group=group.meeting)
    return [int(other.item()) for other in numbers]


def leave_group(group: Group) -> None:
    """Destroys the group's process groups; every rank of the group calls it."""
    for process_group in (group.process_group, group.meeting):
        if process_group is not None:
            dist.destroy_process_group(process_group)


def ensure_process_group(device: torch.device) -> None:
    """Initialises torch.distributed from torchrun's variables unless the caller has done so.

    Raises:
        UsageError: there is neither a process group nor a torchrun launch.
    """
    if dist.is_initialized():
        return
    if not dist.is_torchelastic_launched():
        raise UsageError("no process group: start the script with torchrun, or call torch.distributed.init_process_group first")
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, timeout=MEETING_TIMEOUT)
    atexit.register(_leave_world)


def _leave_world() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def share_random_state(group: Group, device: torch.device) -> None:
    """Gives every rank of the group the leader's default random state, so that noise drawn without a generator agrees."""
    if group.size == 1:
        return
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    boxed: list[list[torch.Tensor]] = [states]
    dist.broadcast_object_list(boxed, group=group.process_group, group_src=0, device=device)
    torch.set_rng_state(boxed[0][0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(boxed[0][1], device)
