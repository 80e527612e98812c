"""How ranks are counted under each launcher."""

import pytest

from hybridiff.cluster.launch import BatchJob, Launch, check_trainer, detect_batch_job, detect_launch
from hybridiff.errors import UsageError

TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
SLURM = {
    "SLURM_NTASKS": "4",
    "SLURM_NNODES": "2",
    "SLURM_PROCID": "3",
    "SLURM_NODEID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_JOB_NAME": "generate",
}
PLAIN = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"}


def test_alone_is_one_rank() -> None:
    assert detect_launch("auto", 1, {}) == Launch(rank=0, world_size=1, local_world_size=1)


def test_lightning_starts_devices_on_each_node() -> None:
    launch = detect_launch(2, 3, {"NODE_RANK": "2", "LOCAL_RANK": "1"})
    assert launch == Launch(rank=5, world_size=6, local_world_size=2)
    assert launch.nodes == 3


def test_torchrun_and_slurm_are_believed() -> None:
    assert detect_launch("auto", 1, TORCHRUN) == Launch(rank=5, world_size=8, local_world_size=4)
    assert detect_launch("auto", 1, SLURM) == Launch(rank=3, world_size=4, local_world_size=2)


def test_plain_python_in_a_batch_script_of_one_task_is_one_rank() -> None:
    alone = PLAIN | {"SLURM_NTASKS": "1", "SLURM_NNODES": "1", "SLURM_PROCID": "0", "SLURM_NODEID": "0"}
    assert detect_launch("auto", 1, alone | {"SLURM_STEP_TASKS_PER_NODE": "1"}) == Launch(0, 1, 1)


def test_an_interactive_slurm_shell_is_no_launcher() -> None:
    assert detect_launch("auto", 1, SLURM | {"SLURM_JOB_NAME": "bash"}).world_size == 1


def test_a_launch_that_is_planned_is_checked_as_the_real_one() -> None:
    check_trainer("auto", 1, Launch(0, 8, 4))
    check_trainer(4, 2, Launch(0, 8, 4))
    with pytest.raises(UsageError, match=r"trainer.devices is 2; allowed: auto, or 4 as"):
        check_trainer(2, 1, Launch(0, 8, 4))


def test_submit_advises_its_own_option() -> None:
    with pytest.raises(UsageError, match=r"trainer.devices is 2; allowed: auto, or 4 as --ranks_per_node sets the ranks of a"):
        check_trainer(2, 1, Launch(0, 8, 4), "--ranks_per_node")


@pytest.mark.parametrize(
    "environment",
    [
        {"JOB_COMPLETION_INDEX": "3", "KUBERNETES_SERVICE_HOST": "10.0.0.1", "HOSTNAME": "corpus-3"},
        {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "corpus-0", "MASTER_PORT": "29500"},  # as training operators set them
        {"SLURM_NTASKS": "", "SLURM_PROCID": "3"},
    ],
)
def test_a_pod_is_a_job_of_its_own_whatever_its_index(environment: dict[str, str]) -> None:
    assert detect_launch("auto", 1, environment) == Launch(0, 1, 1)
    assert detect_launch(2, 1, environment) == Launch(0, 2, 2)
    assert detect_batch_job(environment) == BatchJob(None, 0, None)


def test_the_job_is_known_by_its_batch_system_or_launcher() -> None:
    slurm = {"SLURM_CLUSTER_NAME": "big", "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2"}
    assert detect_batch_job(slurm) == BatchJob("7", 2, "big")
    assert detect_batch_job(slurm | {"TORCHELASTIC_RUN_ID": "7.2"}).id == "7"
    assert detect_batch_job(slurm | {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "0"}) == BatchJob("5_0", 2, "big")
    assert detect_batch_job({"SLURM_CLUSTER_NAME": "big", "TORCHELASTIC_RUN_ID": "abc"}) == BatchJob("abc", 0, None)


@pytest.mark.parametrize(
    ("devices", "nodes", "environment", "message"),
    [
        ("auto", 1, SLURM | {"SLURM_JOB_NAME": "bash", "SLURM_STEP_NUM_TASKS": "4"}, "in an interactive job; allowed: salloc"),
        ("auto", 2, {"NODE_RANK": "2"}, "the variable NODE_RANK is 2; allowed: 0 to 1, as trainer.num_nodes is 2"),
        ("auto", 99, {}, "trainer.num_nodes is 99; allowed: 1 without a launcher; torchrun or srun start ranks on several nodes"),
        ("-1", 1, {}, "trainer.devices is '-1'; allowed: auto, a number"),
        ([], 1, {}, r"trainer.devices is \[\]; allowed: auto, a number of ranks"),
        (999_999_999, 1, {}, "trainer.devices is 999999999; allowed: auto, a number of ranks from 1 to 1024"),
        (3, 1, TORCHRUN, "trainer.devices is 3; allowed: auto, or 4 as"),
        ("auto", 3, TORCHRUN, "trainer.num_nodes is 3; allowed: 2"),
        ("auto", 1, SLURM | {"SLURM_NTASKS": "5"}, "the same number on each node"),
        ("auto", 1, SLURM | {"SLURM_STEP_TASKS_PER_NODE": "3,1"}, "as 3,1; allowed: the same number on each node"),
        ("auto", 1, SLURM | {"SLURM_NODEID": "0"}, "allowed: srun --distribution=block"),
        ("auto", 1, PLAIN, "the SLURM job has 4 tasks, but python was started without srun; allowed: srun python, or 1 task"),
    ],
)
def test_contradictions_are_refused(devices: int | str, nodes: int, environment: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        detect_launch(devices, nodes, environment)
