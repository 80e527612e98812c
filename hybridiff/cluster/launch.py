"""How this process was started: by torchrun, by srun, by Lightning itself, or alone."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hybridiff.errors import UsageError


@dataclass(frozen=True)
class Launch:
    """Where this rank stands.

    Args:
        rank: In the world, from 0.
        world_size: Ranks in all.
        local_world_size: Ranks on each node.
    """

    rank: int
    world_size: int
    local_world_size: int

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return self.world_size // self.local_world_size


def detect_launch(devices: int | str | list[int], nodes: int, environment: Mapping[str, str] = os.environ) -> Launch:
    """Reads the launcher's variables; without a launcher, Lightning starts ``devices`` ranks on each of ``nodes``.

    Args:
        devices: ``trainer.devices``; auto means what the launcher started, or 1.
        nodes: ``trainer.num_nodes``.

    Raises:
        UsageError: the trainer options contradict the launcher, or its ranks are not spread evenly over nodes.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        launch = _by_torchrun(environment)
    elif environment.get("SLURM_NTASKS") and environment.get("SLURM_JOB_NAME") not in (None, "bash", "interactive"):
        launch = _by_srun(environment)
    else:
        return _by_lightning(devices, nodes, environment)
    check_asked(devices, nodes, launch)
    return launch


def check_asked(devices: int | str | list[int], nodes: int, launch: Launch) -> None:
    """Refuses trainer options that contradict what a launcher starts.

    Raises:
        UsageError: naming the option and what it may be.
    """
    local = launch.local_world_size
    if devices not in ("auto", -1, "-1") and _count(devices) != local:
        raise UsageError(
            f"trainer.devices is {devices!r}; allowed: auto, or {local} as the launcher started {local} ranks on a node"
        )
    if nodes not in (1, launch.nodes):
        raise UsageError(f"trainer.num_nodes is {nodes!r}; allowed: {launch.nodes}, as the launcher started it")


def count_devices(devices: Any, launch: Launch) -> Any:
    """``trainer.devices`` as a number, also where the command line gave it as text or it is auto; a list of devices as it is."""
    if devices in (None, "auto", -1, "-1"):
        return launch.local_world_size
    return int(devices) if isinstance(devices, str) and devices.isdigit() else devices


def has_parent(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun or Lightning's first rank has started this process: it should not outlive them."""
    return "TORCHELASTIC_RUN_ID" in environment or "LOCAL_RANK" in environment


def job_id(environment: Mapping[str, str] = os.environ) -> str | None:
    """What the batch system or launcher calls this job, for people; None if there is neither."""
    return environment.get("SLURM_JOB_ID") or environment.get("TORCHELASTIC_RUN_ID")


def cluster_name(environment: Mapping[str, str] = os.environ) -> str | None:
    """SLURM's name of the cluster that runs this job; None outside SLURM."""
    return environment.get("SLURM_CLUSTER_NAME") if "SLURM_JOB_ID" in environment else None


def restarts(environment: Mapping[str, str] = os.environ) -> int:
    """How often SLURM has requeued this job; 0 outside it."""
    return int(environment.get("SLURM_RESTART_COUNT", 0))


def _by_torchrun(environment: Mapping[str, str]) -> Launch:
    return _even(*(int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")))


def _by_srun(environment: Mapping[str, str]) -> Launch:
    _check_step(environment)
    rank, world = int(environment.get("SLURM_PROCID", 0)), int(environment["SLURM_NTASKS"])
    nodes = int(environment.get("SLURM_NNODES", 1))
    local = world // nodes if world % nodes == 0 else 0
    _check_place(rank, local, environment)
    return _even(rank, world, local)


def _by_lightning(devices: int | str | list[int], nodes: int, environment: Mapping[str, str]) -> Launch:
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # Lightning takes each of them for a world of its own
        raise UsageError("srun started several tasks in an interactive job; allowed: salloc --job-name=NAME, or torchrun")
    local = _count(devices)
    rank = int(environment.get("NODE_RANK", 0)) * local + int(environment.get("LOCAL_RANK", 0))
    return Launch(rank, local * nodes, local)


def _even(rank: int, world: int, local: int) -> Launch:
    if local < 1 or world % local:
        raise UsageError(f"the launcher started {world} ranks; allowed: the same number on each node")
    return Launch(rank, world, local)


def _check_step(environment: Mapping[str, str]) -> None:
    """Refuses plain python in a batch script that has several tasks: the others would be waited for without end."""
    tasks = int(environment["SLURM_NTASKS"])
    if tasks > 1 and "SLURM_STEP_ID" not in environment and "SLURM_STEPID" not in environment:
        raise UsageError(f"the SLURM job has {tasks} tasks, but python was started without srun; allowed: srun python, or 1 task")


def _check_place(rank: int, local: int, environment: Mapping[str, str]) -> None:
    """Refuses tasks that are not spread over nodes in blocks of the same size: groups would lie on two nodes."""
    spread = environment.get("SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_TASKS_PER_NODE", ""))
    if local < 1 or "," in spread:
        raise UsageError(f"srun spreads its tasks over nodes as {spread}; allowed: the same number on each node")
    if int(environment.get("SLURM_NODEID", 0)) != rank // local:
        raise UsageError("srun numbers its tasks across nodes, and groups lie inside a node; allowed: srun --distribution=block")


def _count(devices: int | str | list[int]) -> int:
    if isinstance(devices, list):
        return len(devices)
    if devices == "auto":
        return 1
    if "," in str(devices):
        return len(str(devices).strip(",").split(","))
    if not str(devices).isdigit() or int(devices) < 1:
        raise UsageError(f"trainer.devices is {devices!r}; allowed: auto, a number of ranks from 1 on, or a list of devices")
    return int(devices)
