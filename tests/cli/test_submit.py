"""hybridiff submit without a SLURM: the plan, the batch script, and a look at a corpus."""

import json
import os
from pathlib import Path

import pytest
from hybridiff.corpus.lock import RunLock

from hybridiff.cli import submit
from hybridiff.cluster import queue
from hybridiff.corpus import Corpus
from hybridiff.corpus.record import RunRecord


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"a red circle {index}"}) + "\n" for index in range(10)))
    return [
        f"--data.prompts={prompts}",
        f"--output.url={tmp_path / 'corpus'}",
        "--output.shard_size=2",
        "--trainer.accelerator=cpu",
    ]


def test_it_prints_the_plan_and_a_batch_script_of_the_right_size(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    sized = [
        "--nodes=9",
        "--gpus_per_node=4",
        "--array",
        "--rate=0.01",
        "--time=02:00:00",
        "--parallel.group_size=2",
        "--account=me",
    ]
    assert submit.main([*sized, *given]) == 0
    printed = capsys.readouterr()
    assert "left:     10 images in 5 of 5 shards\ngroups:   6 of 2 ranks, on 3 nodes\n" in printed.err
    assert "estimate: 8 min, at 0.01 images/s of a group\nwalltime: 00:15:00\n" in printed.err
    lines = printed.out.splitlines()
    assert {"#SBATCH --array=0-2", "#SBATCH --gpus-per-node=4", "#SBATCH --time=00:15:00", "#SBATCH --account=me"} <= set(lines)
    (arguments,) = [line for line in lines if line.startswith("set -- ")]
    assert arguments == f'set -- --parallel.group_size=2 {" ".join(given)} "$@"'


def test_the_job_in_which_it_is_called_is_another_one(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a notebook on a node, or under salloc."""
    inside = {"SLURM_NTASKS": "3", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "notebook", "SLURM_STEP_ID": "0", "SLURM_CONF": "kept"}
    for name, value in inside.items():
        monkeypatch.setenv(name, value)
    program(tmp_path, "squeue", "", monkeypatch)
    program(tmp_path, "sbatch", "cat >/dev/null; env | grep ^SLURM_", monkeypatch)
    assert submit.main(["--nodes=2", "--gpus_per_node=4", "--parallel.group_size=2", "--submit", *given]) == 0
    printed = capsys.readouterr()
    assert "groups:   4 of 2 ranks, on 2 nodes" in printed.err and printed.out == "SLURM_CONF=kept\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpus_per_node=4", "--trainer.devices=2"], "trainer.devices is '2'; allowed: auto, or 4 as"),
        (["--gpus_per_node=7", "--parallel.group_size=2"], "7 GPUs, which do not split into groups of 2"),
        (["--time=soon"], "time is 'soon'; allowed: minutes"),
        (["--watch", "--once"], "no job has started on it yet"),
        (["--smapling.steps=3"], "smapling"),
    ],
)
def test_mistakes_are_told_in_one_line(
    given: list[str], options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit.main([*options, *given]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("submit: error: ") and message in printed.err and printed.err.count("\n") == 1
    assert printed.out == ""


def program(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of SLURM's that does what the text says."""
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")


@pytest.fixture
def no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without SLURM, to which tests add what they need."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def test_gpus_that_are_left_idle_need_no_counting(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert submit.main(["--gpus_per_node=7", "--parallel.group_size=2", "--parallel.leave_idle=true", *given]) == 0
    printed = capsys.readouterr()
    assert "groups:   3 of 2 ranks, on 1 nodes" in printed.err
    assert "\nexport RANKS_PER_NODE=6\nset -- --parallel.group_size=2" in printed.out


def test_it_is_called_in_the_checkout_where_the_job_runs(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PWD", str(submit.ROOT))  # a directory, and no password
    assert submit.main(given) == 2
    assert f"the working directory is {tmp_path}; allowed: the checkout, cd {submit.ROOT}" in capsys.readouterr().err


@pytest.mark.usefixtures("no_slurm")
def test_without_slurm_nothing_is_submitted(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert submit.main(["--submit", *given]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("submit: error: there is no squeue here; allowed: --submit on a")


@pytest.mark.parametrize(
    ("squeue", "sbatch", "code", "said"),
    [
        ("echo no controller >&2; exit 1", "", 2, "submit: error: squeue: exit code 1: no controller"),
        ("", "", 2, "submit: error: there is no sbatch here; "),
        ("", "echo no such partition >&2; exit 3", 3, ""),
        ("echo '12|hybridiff|hybridiff:/elsewhere'; echo '13|word|(null)'", "cat >/dev/null; echo '14;cluster'", 0, ""),
        ("echo '12|any|hybridiff:CORPUS'", "", 2, "submit: error: job 12 in the queue writes to CORPUS; allowed: one job on"),
    ],
)
@pytest.mark.usefixtures("no_slurm")
def test_slurm_is_asked_before_a_job_is_submitted(
    given: list[str],
    squeue: str,
    sbatch: str,
    code: int,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    corpus = str(tmp_path / "corpus")
    program(tmp_path, "squeue", squeue.replace("CORPUS", corpus), monkeypatch)
    if sbatch:
        (tmp_path / "bin" / "cat").symlink_to("/bin/cat")
        program(tmp_path, "sbatch", sbatch, monkeypatch)
    assert submit.main(["--submit", *given]) == code
    printed = capsys.readouterr()
    assert printed.out == ("14\n" if code == 0 else "")
    assert printed.err.splitlines()[-1].startswith(said.replace("CORPUS", corpus))


def test_storage_that_fails_is_told_in_one_line(given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit.main([f"--write={tmp_path}", *given]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("submit: error: IsADirectoryError: ")


@pytest.mark.usefixtures("no_slurm")
def test_watching_ends_when_nobody_works_on_what_is_left(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = Corpus(str(tmp_path / "corpus"))
    corpus.start_run(RunRecord({}, {"rows": 10, "shards": 5, "content": "c"}))
    assert not queue.over(corpus)  # without SLURM nobody knows
    for line in (f"7|any|{queue.comment(corpus)}", "7|hybridiff|(null)"):
        program(tmp_path, "squeue", f"echo '{line}'", monkeypatch)
        assert not queue.over(corpus)
    program(tmp_path, "squeue", "echo '7|hybridiff|hybridiff:/elsewhere'", monkeypatch)
    with RunLock(corpus):
        assert not queue.over(corpus)
    monkeypatch.setattr(submit, "LOOK_S", 0.01)
    assert submit.main(["--watch", *given]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "0 of 5 shards" in lines[0] and lines[1].startswith("no job works on it any more")


@pytest.mark.usefixtures("no_slurm")
def test_watching_ends_where_only_damaged_shards_are_left(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = Corpus(str(tmp_path / "corpus"))
    corpus.start_run(RunRecord({}, {"rows": 10, "shards": 1, "content": "c"}))
    corpus.publish("commits/00000.json", b"garbage")
    monkeypatch.setattr(submit, "LOOK_S", 0.01)
    assert submit.main(["--watch", *given]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert "0 of 1 shards" in line and "damaged: commits/00000.json: run jobs/verify.py --repair" in line
