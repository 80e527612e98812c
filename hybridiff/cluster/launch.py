"""How this process was started: by torchrun, srun, Lightning itself, or alone. A launcher's variables are read in one place.

Pods of an indexed Kubernetes job are processes of their own: their index (``JOB_COMPLETION_INDEX``) makes no rank of them.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hybridiff.errors import UsageError, require

Devices = int | str | list[int]
MAX_RANKS = 1024  # of a node: more is a mistake, and would take its memory before it fails
_SET_BY_LIGHTNING = frozenset({"LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "WORLD_SIZE"})


@dataclass(frozen=True)
class Launch:
    """The ranks of a job, and which of them this process is.

    Args:
        rank: index of this process, from 0.
        world_size: number of ranks of the job.
        local_world_size: number of ranks on each node.
    """

    rank: int
    world_size: int
    local_world_size: int

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return self.world_size // self.local_world_size


@dataclass(frozen=True)
class BatchJob:
    """The job that this process belongs to, as its batch system or launcher knows it.

    Args:
        id: number or name of the job, such as 7 or 7_1 for a task of an array; None without a batch system or launcher.
        restarts: how often SLURM has requeued it.
        cluster: SLURM's name of the cluster; None outside SLURM.
    """

    id: str | None
    restarts: int
    cluster: str | None


def detect_launch(devices: Devices, nodes: int, environment: Mapping[str, str] = os.environ) -> Launch:
    """Reads the launcher's variables; without a launcher, Lightning starts ``devices`` ranks on each of ``nodes``.

    Args:
        devices: ``trainer.devices``; auto means what the launcher started, or 1.
        nodes: ``trainer.num_nodes``.

    Raises:
        UsageError: the trainer options contradict the launcher, or its ranks are not spread evenly over nodes.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        launch = _from_torchrun(environment)
    elif environment.get("SLURM_NTASKS") and environment.get("SLURM_JOB_NAME") not in (None, "bash", "interactive"):
        launch = _from_srun(environment)
    else:
        return _from_lightning(devices, nodes, environment)
    check_trainer(devices, nodes, launch)
    return launch


@contextmanager
def restoring_launcher_variables() -> Iterator[None]:
    """Removes the variables that Lightning sets for its process group, where they were not set before."""
    before = set(os.environ)
    try:
        yield
    finally:
        for name in _SET_BY_LIGHTNING & (set(os.environ) - before):
            del os.environ[name]


def detect_batch_job(environment: Mapping[str, str] = os.environ) -> BatchJob:
    """Which job this process belongs to."""
    if "SLURM_JOB_ID" in environment:
        task, array = environment.get("SLURM_ARRAY_TASK_ID"), environment.get("SLURM_ARRAY_JOB_ID")
        number = f"{array}_{task}" if task and array else environment["SLURM_JOB_ID"]  # that of the last task is the array's too
        return BatchJob(number, int(environment.get("SLURM_RESTART_COUNT", 0)), environment.get("SLURM_CLUSTER_NAME"))
    return BatchJob(environment.get("TORCHELASTIC_RUN_ID"), 0, None)


def has_parent(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun or Lightning's first rank has started this process, which should not outlive them."""
    return "TORCHELASTIC_RUN_ID" in environment or "LOCAL_RANK" in environment


def launching_process(environment: Mapping[str, str] = os.environ) -> int | None:
    """Id of the process that has started this one as a rank; None where there is none. Ask before that could end."""
    return os.getppid() if has_parent(environment) else None


def in_slurm_step(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether srun has started this process, and not only sbatch or salloc."""
    return "SLURM_STEP_ID" in environment or "SLURM_STEPID" in environment


def check_trainer(devices: Devices, nodes: int, launch: Launch, option: str = "") -> None:
    """Refuses trainer options that contradict what a launcher starts.

    Args:
        devices: ``trainer.devices``.
        nodes: ``trainer.num_nodes``.
        launch: what it starts.
        option: another command's option that sets the number of ranks of a node, to be advised.

    Raises:
        UsageError: naming the option and what it may be.
    """
    local = launch.local_world_size
    if devices not in ("auto", -1, "-1") and _count(devices) != local:
        why = f"as {option} sets the ranks of a node" if option else f"as the launcher started {local} ranks on a node"
        raise UsageError(f"trainer.devices is {devices!r}; allowed: auto, or {local} {why}")
    if nodes not in (1, launch.nodes):
        raise UsageError(f"trainer.num_nodes is {nodes!r}; allowed: {launch.nodes}, as the launcher started it")


def count_devices(devices: Any, launch: Launch) -> Any:
    """``trainer.devices`` as a number, also where it was given as text or is auto; a list of devices stays as it is."""
    if devices in (None, "auto", -1, "-1"):
        return launch.local_world_size
    return int(devices) if isinstance(devices, str) and devices.isdigit() else devices


def _from_torchrun(environment: Mapping[str, str]) -> Launch:
    return _even(*(int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")))


def _from_srun(environment: Mapping[str, str]) -> Launch:
    tasks, nodes = int(environment["SLURM_NTASKS"]), int(environment.get("SLURM_NNODES", 1))
    rank, node = int(environment.get("SLURM_PROCID", 0)), int(environment.get("SLURM_NODEID", 0))
    spread = environment.get("SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_TASKS_PER_NODE", ""))
    local, odd = divmod(tasks, nodes)
    if tasks > 1 and not in_slurm_step(environment):  # the other tasks would be waited for without end
        raise UsageError(f"the SLURM job has {tasks} tasks, but python was started without srun; allowed: srun python, or 1 task")
    if odd or local < 1 or "," in spread:
        raise UsageError(f"srun spreads its tasks over nodes as {spread}; allowed: the same number on each node")
    if node != rank // local:
        raise UsageError("srun numbers its tasks across nodes, and groups lie inside a node; allowed: srun --distribution=block")
    return _even(rank, tasks, local)


def _from_lightning(devices: Devices, nodes: int, environment: Mapping[str, str]) -> Launch:
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # Lightning would make a world of its own of each
        raise UsageError("srun started several tasks in an interactive job; allowed: salloc --job-name=NAME, or torchrun")
    local = _count(devices)
    if nodes > 1 and "NODE_RANK" not in environment:  # as the first node would wait for the others without end
        allowed = "1 without a launcher; torchrun or srun start ranks on several nodes, and hybridiff submit writes such a job"
        raise UsageError(f"trainer.num_nodes is {nodes!r}; allowed: {allowed}")
    node, local_rank = int(environment.get("NODE_RANK", 0)), int(environment.get("LOCAL_RANK", 0))
    if not 0 <= node < nodes:
        raise UsageError(f"the variable NODE_RANK is {node}; allowed: 0 to {nodes - 1}, as trainer.num_nodes is {nodes}")
    return Launch(node * local + local_rank, local * nodes, local)


def _even(rank: int, world: int, local: int) -> Launch:
    if local < 1 or world % local:
        raise UsageError(f"the launcher started {world} ranks; allowed: the same number on each node")
    return Launch(rank, world, local)


def _count(devices: Devices) -> int:
    if isinstance(devices, list):
        require(bool(devices), "trainer.devices", devices, "auto, a number of ranks, or a list of devices")
        return len(devices)
    if devices == "auto":
        return 1
    if "," in str(devices):
        return len(str(devices).strip(",").split(","))
    if not str(devices).isdigit() or not 1 <= int(devices) <= MAX_RANKS:
        raise UsageError(
            f"trainer.devices is {devices!r}; allowed: auto, a number of ranks from 1 to {MAX_RANKS}, or a list of devices"
        )
    return int(devices)
