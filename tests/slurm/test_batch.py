"""What the batch scripts do in cases that a real SLURM on one machine does not show, or only in minutes."""

import shutil
from pathlib import Path

import pytest

from tests.dist.processes import ROOT
from tests.slurm.pretended import Pretended


@pytest.fixture
def batch(tmp_path: Path) -> Pretended:
    return Pretended(tmp_path)


def ranks(codes: dict[int, int]) -> str:
    """What ranks do to end with these codes, a tenth of a second apart; those that are not named are killed with their script."""
    order = " ".join(f"{rank}) sleep 0.{place}; exit {code} ;;" for place, (rank, code) in enumerate(codes.items()))
    return f"case $SLURM_PROCID in {order} *) kill -KILL $PPID ;; esac"


@pytest.mark.parametrize(
    ("codes", "code", "requeued"),
    [
        ({0: 0, 1: 0}, 0, False),
        ({0: 85, 1: 85}, 85, True),
        ({0: 0, 1: 85}, 85, True),
        ({1: 143, 0: 85}, 85, True),
        ({0: 143, 1: 143}, 85, True),
        ({0: 138, 1: 85}, 85, True),
        ({0: 143, 1: 1}, 1, True),  # the cause comes second
        ({1: 1, 0: 3}, 1, True),
        ({1: 1}, 1, True),  # the other was killed with it
        ({0: 85, 1: 3}, 3, False),
        ({1: 3, 0: 1}, 3, False),
        ({1: 2, 0: 143}, 2, False),
        ({1: 139, 0: 1}, 139, False),
        ({0: 85}, 137, False),  # the other was killed before it reported
        ({0: 0}, 137, False),
    ],
)
def test_the_job_ends_as_the_rank_that_failed_first(batch: Pretended, codes: dict[int, int], code: int, requeued: bool) -> None:
    ended = batch.run(ON_RANK=ranks(codes))
    assert (ended.code, bool(ended.called("scontrol", "requeue"))) == (code, requeued), ended.output
    assert ("only 1 of 2 ranks left an exit code" in ended.output) == (len(codes) < 2)


@pytest.mark.parametrize(("srun", "code"), [("exit 0", 1), ("exit 1", 1), ("exit 138", 138), ("exit 143", 143)])
def test_ranks_that_were_never_there_are_no_success_and_not_requeued(batch: Pretended, srun: str, code: int) -> None:
    ended = batch.run(ON_SRUN=srun)
    assert ended.code == code and "only 0 of 2 ranks left an exit code" in ended.output
    assert not ended.called("scontrol", "requeue")


def test_logs_of_a_thousand_ranks_are_not_too_many(batch: Pretended) -> None:
    files = 'for i in {0..1023}; do echo 85 >"$LOGS/node$i-rank$i.code"; echo word >"$LOGS/node$i-rank$i.log"; done; exit 0'
    ended = batch.run(ON_SRUN=f"{files}; exit 0", SLURM_JOB_NUM_NODES="1024")
    assert ended.code == 85 and ended.output.count("\n--- ") == 16 and ended.called("scontrol", "requeue", "7")
    files = files.replace("; exit 0", '; echo 9 >"$LOGS/node999-rank999.code"; exit 1')
    ended = batch.run(ON_SRUN=files, SLURM_JOB_NUM_NODES="1024", SLURM_RESTART_COUNT="1")
    first = ended.output[ended.output.index("\n--- ") :].splitlines()[1]
    assert ended.code == 9 and first.endswith("run2/node999-rank999.log")


def test_a_warning_before_the_ranks_are_started_reaches_them(batch: Pretended) -> None:
    """Sent by a program that the script waits for; the ranks wait until it reaches them."""
    warned = f'while ! grep -q "^scancel --signal=USR1 7" {batch.folder}/calls; do sleep 0.1; done; exit 85'
    ended = batch.run(ON_SMI="kill -USR1 $PPID", ON_RANK=warned)
    assert ended.code == 85 and ended.output.count("the time limit is near") == 1


def test_a_warning_when_all_is_over_changes_nothing(batch: Pretended) -> None:
    ended = batch.run(ON_RANK="exit 85", ON_REQUEUE="kill -USR1 $PPID")
    assert ended.code == 85 and "the time limit is near" not in ended.output


def test_a_requeue_that_slurm_refuses_is_reported(batch: Pretended) -> None:
    ended = batch.run(ON_RANK="exit 85", ON_REQUEUE="echo disabled >&2; exit 1")
    assert ended.code == 85 and "disabled\n=== SLURM does not requeue it: submit the same again" in ended.output


def test_a_slurm_that_does_not_answer_is_asked_for_a_minute(batch: Pretended) -> None:
    """And what it then says counts."""
    busy = '(($(grep -c "^scontrol $1" "$CALLS") >= 6)) || exit 1'
    ended = batch.run(ON_RANK="exit 85", ON_SHOW=busy.replace("$1", "show job"))
    assert ended.code == 85 and len(ended.called("scontrol", "show", "job")) == 6
    assert ended.called("scontrol", "requeue") == ["scontrol requeue 7"]
    ended = batch.run(ON_RANK="exit 85", ON_REQUEUE=busy)
    assert ended.code == 85 and len(ended.called("scontrol", "requeue", "7")) == 6 and "does not requeue it" not in ended.output


def test_a_slurm_that_never_answers_has_not_cancelled_the_job(batch: Pretended) -> None:
    ended = batch.run(ON_RANK="exit 85", ON_SHOW="echo no controller >&2; exit 1")
    assert ended.code == 85 and len(ended.called("scontrol", "show", "job")) == 12 and not ended.called("scontrol", "requeue")
    assert "not requeued, as SLURM does not say whether it is cancelled: submit the same again" in ended.output


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"STATE": "CANCELLED"}, "as the job is cancelled or requeued already"),
        ({"SLURM_RESTART_COUNT": "100"}, "not requeued, after 100 times"),
        ({"SLURM_RESTART_COUNT": "2", "MAX_REQUEUES": "2"}, "not requeued, after 2 times"),
    ],
)
def test_it_is_not_requeued_for_ever(batch: Pretended, given: dict[str, str], said: str) -> None:
    ended = batch.run(ON_RANK="exit 85", **given)
    assert ended.code == 85 and said in ended.output and not ended.called("scontrol", "requeue")


def test_runs_that_add_nothing_are_requeued_three_times_in_a_row(batch: Pretended) -> None:
    def requeued(run: int, left: str) -> bool:
        rank = f"[[ $SLURM_PROCID == 1 ]] || {left}; exit 85"
        return bool(batch.run(ON_RANK=rank, SLURM_RESTART_COUNT=str(run)).called("scontrol", "requeue"))

    left = ["echo 'shards left:   9, by other groups'", "echo 'shards left:   8, by the next run'", "echo loading"]
    assert [requeued(run, left[which]) for run, which in enumerate([2, 0, 0, 2, 1, 1, 2, 1])] == [True] * 7 + [False]


def test_an_error_that_stays_is_requeued_no_longer_than_that(batch: Pretended) -> None:
    """As storage that is away may come back, and a bug of ours or damage does not go away by itself."""
    runs = [batch.run(ON_RANK="exit 1", SLURM_RESTART_COUNT=str(run)) for run in range(3)]
    assert [bool(ended.called("scontrol", "requeue")) for ended in runs] == [True, True, False]
    assert all(ended.code == 1 for ended in runs)
    assert runs[-1].output.splitlines()[-1] == "=== stopped; not requeued, as 3 runs in a row added nothing"


def test_a_step_is_given_all_variables_and_the_processors_of_a_task(batch: Pretended) -> None:
    (call,) = batch.run("--config=mine.yaml", SLURM_CPUS_PER_TASK="6", SLURM_GPUS_PER_NODE="a100:4").called("srun")
    words = call.split()
    assert {"--ntasks=8", "--ntasks-per-node=4", "--export=ALL", "--cpus-per-task=6", "--kill-on-bad-exit=1"} <= set(words)
    assert words[-5:] == [f"{batch.folder}/venv/bin/python", "-m", "hybridiff", "generate", "--config=mine.yaml"]


def test_the_log_begins_with_the_environment_and_no_secrets(batch: Pretended) -> None:
    given = {"NCCL_DEBUG": "WARN", "HF_TOKEN": "hf_secret", "ON_SMI": "echo smi $1"}
    head = batch.run(**given).output.partition("\n===")[0].splitlines()
    assert head[0].startswith("=== job 7, run 1, ")
    assert head[1] == f"nodes:     node[1-2], 1 ranks each; logs of ranks: {batch.folder}/logs/pretended-7/run1"
    assert head[2].startswith(f"python:    venv:{batch.folder}/venv; launcher srun; rendezvous node1:2")
    assert {"HF_TOKEN=***", "NCCL_DEBUG=WARN", "CUDA_DEVICE_ORDER=PCI_BUS_ID"} <= set(head[3:-3])
    assert head[-3:] == ["smi --query-gpu=index,name,memory.total,driver_version", "smi topo", "versions: pretended"]


def test_jobs_that_follow_one_another_never_choose_the_same_port_however_often_they_were_requeued(batch: Pretended) -> None:
    """Their ranks listen only minutes later: a free port may be another job's choice too."""
    runs = [(job, restart) for job in (7, 8) for restart in (0, 1, 7, 8)]
    heads = [batch.run(SLURM_JOB_ID=str(job), SLURM_RESTART_COUNT=str(restart)).output for job, restart in runs]
    ports = [head.partition("rendezvous node1:")[2].split()[0] for head in heads]
    assert len(set(ports)) == len(runs) and all(20000 <= int(port) < 30100 for port in ports)


def test_tasks_of_an_array_run_the_same_command_and_are_requeued_by_their_own_number(batch: Pretended) -> None:
    given = {"SLURM_ARRAY_TASK_ID": "14", "SLURM_ARRAY_JOB_ID": "5"}
    ended = batch.run("word", script="array", SLURM_JOB_NUM_NODES="1", ON_RANK="exit 85", **given)
    assert ended.called("srun")[0].endswith("-m hybridiff generate word")
    assert ended.called("scontrol", "requeue") == ["scontrol requeue 5_14"]


@pytest.mark.parametrize("script", ["generate", "array"])
def test_outside_slurm_it_ends_in_one_line(batch: Pretended, script: str) -> None:
    ended = batch.run(script=script, SLURM_JOB_ID="")
    (line,) = ended.output.splitlines()
    assert ended.code == 2 and line.startswith("slurm: error: this is not a SLURM job; allowed: sbatch ")


def test_it_runs_outside_a_checkout_with_the_scripts_of_an_installed_package(batch: Pretended, tmp_path: Path) -> None:
    elsewhere, package = tmp_path / "elsewhere", tmp_path / "site-packages/hybridiff/slurm"
    elsewhere.mkdir()
    shutil.copytree(ROOT / "slurm", package)
    given = {"SLURM_SUBMIT_DIR": str(elsewhere), "HYBRIDIFF_ENV": f"pyxis:/image.sqsh venv:{batch.folder}/venv"}
    ended = batch.run("word", cwd=elsewhere, **given)
    (line,) = ended.output.splitlines()
    assert ended.code == 2 and line == f"slurm: error: no job.sh in {elsewhere}/slurm; allowed: HYBRIDIFF_SLURM as its folder"
    ended = batch.run("word", cwd=elsewhere, HYBRIDIFF_SLURM=str(package), **given)
    *_, call = ended.called("srun")
    assert ended.code == 0 and f"bash {package}/rank.sh " in call and f",{package}:{package}" in call
    assert f"--container-workdir={elsewhere} " in call


def test_modules_are_loaded_where_batch_scripts_do_not_know_the_command(batch: Pretended) -> None:
    module = 'module() { [[ -z $NOT_SET_ANYWHERE && $2 != no/1 ]] && echo "module $*" >>"$CALLS"; }'
    batch.program("modules/init/bash", module)
    given = {"MODULESHOME": f"{batch.folder}/modules"}
    ended = batch.run(HYBRIDIFF_ENV="module:cuda/12 module:python/3.11", **given)
    assert ended.code == 0 and ended.called("module", "load") == ["module load cuda/12", "module load python/3.11"]
    refused = batch.run(HYBRIDIFF_ENV="module:no/1", **given)
    assert refused.code == 2 and "slurm: error: HYBRIDIFF_ENV: no module no/1" in refused.output and not refused.called("srun")


def test_apptainer_sees_what_is_mounted(batch: Pretended) -> None:
    image = batch.program("image.sif", "")
    ended = batch.run("word", HYBRIDIFF_ENV=f"apptainer:{image}", HYBRIDIFF_MOUNTS="/scratch/me /a:/b")
    asked, *ranks = ended.called("apptainer")
    assert ended.code == 0 and len(ranks) == 2
    for call in (asked, *ranks):
        assert call.startswith("apptainer exec --nv --bind ") and f"{image} python " in call
        assert _mounts(call.split()[4]) == ["/scratch/me:/scratch/me", "/a:/b"]
    assert ranks[0].endswith(f"{image} python -m hybridiff generate word")


def test_pyxis_sees_what_is_mounted_and_reports_its_own_versions(batch: Pretended) -> None:
    ended = batch.run(HYBRIDIFF_ENV="pyxis:/image.sqsh", HYBRIDIFF_MOUNTS="/scratch/me")
    asked, ranks = ended.called("srun")
    assert ended.code == 0 and "versions: pretended" in ended.output and "--ntasks=1 " in asked
    for call in (asked, ranks):
        (mounts,) = [word for word in call.split() if word.startswith("--container-mounts=")]
        assert "--container-image=/image.sqsh" in call.split() and _mounts(mounts.partition("=")[2]) == [
            "/scratch/me:/scratch/me"
        ]


def _mounts(text: str) -> list[str]:
    """Those besides the working directory and the logs."""
    return text.split(",")[2:]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"HYBRIDIFF_ENV": "conda:base"}, "HYBRIDIFF_ENV has 'conda:base'; allowed: venv:PATH module:NAME"),
        ({"HYBRIDIFF_ENV": "venv:/nowhere"}, "no python in /nowhere/bin"),
        ({"HYBRIDIFF_ENV": "apptainer:/no.sif"}, "no image /no.sif"),
        ({"RANKS_PER_NODE": "all"}, "a node would have 'all' ranks; allowed: RANKS_PER_NODE as a number from 1 on"),
        ({"RANKS_PER_NODE": "0"}, "a node would have '0' ranks; allowed: "),
        ({"LAUNCHER": "mpirun"}, "LAUNCHER is 'mpirun'; allowed: srun, torchrun"),
        ({"SLURM_SUBMIT_DIR": "/"}, "no job.sh in //slurm; allowed: HYBRIDIFF_SLURM as its folder"),
    ],
)
def test_mistakes_end_in_one_line(batch: Pretended, given: dict[str, str], said: str) -> None:
    ended = batch.run(**given)
    (line,) = ended.output.splitlines()
    assert ended.code == 2 and line.startswith("slurm: error: ") and said in line and not ended.called("srun")
