"""``hybridiff submit`` without a SLURM: the plan, and the call of sbatch."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hybridiff import cli
from hybridiff.cli import submit
from hybridiff.cli.config import parse
from hybridiff.corpus.corpus import Corpus
from tests.dist.processes import ROOT


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.delenv("HYBRIDIFF_ENV", raising=False)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"a red circle {index}"}) + "\n" for index in range(10)))
    return [
        "--model.path=shapes-xl",
        f"--data.prompts={prompts}",
        f"--output.url={tmp_path / 'corpus'}",
        "--output.shard_size=2",
        "--trainer.accelerator=cpu",
    ]


def run(*arguments: str) -> int:
    """The exit code of the command."""
    return cli.main(["submit", *arguments])


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


def test_it_prints_the_plan_and_the_exact_command(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    sized = ["--nodes=9", "--gpus_per_node=4", "--array", "--rate=0.01", "--time=02:00:00", "--account=me", "--sbatch=--mem=0"]
    assert run(*sized, "--parallel.group_size=2", *given) == 0
    printed = capsys.readouterr()
    assert "left:     10 images in 5 of 5 shards\ngroups:   6 of 2 ranks, on 3 nodes\n" in printed.err
    assert "estimate: 8 min, at 0.01 images/s of a group\nwalltime: 00:15:00\n" in printed.err
    slurm, environment, *words = shlex.split(printed.out)
    assert slurm == f"HYBRIDIFF_SLURM={ROOT / 'slurm'}" and environment == f"HYBRIDIFF_ENV=venv:{sys.prefix}"
    place = words.index(f"{ROOT / 'slurm' / 'array.sbatch'}")
    assert words[:2] == ["sbatch", "--parsable"] and words[place + 1 :] == ["--parallel.group_size=2", *given]
    assert {"--array=0-2", "--nodes=1", "--gpus-per-node=4", "--time=00:15:00", "--account=me", "--mem=0"} <= set(words[:place])


def test_the_command_that_is_printed_is_the_one_that_is_run_from_any_directory(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    program(tmp_path, "squeue", "", monkeypatch)
    record = f'printf "%s\\n" "$PWD" "$HYBRIDIFF_SLURM" "$HYBRIDIFF_ENV" sbatch "$@" >>{tmp_path}/calls; echo "14;cluster"'
    program(tmp_path, "sbatch", record, monkeypatch)
    assert run(*given) == 0
    subprocess.run(["bash", "-c", capsys.readouterr().out], check=True, stdout=subprocess.DEVNULL)
    printed = (tmp_path / "calls").read_text()
    (tmp_path / "calls").unlink()
    assert run("--submit", *given) == 0
    assert capsys.readouterr().out == "14\n" and (tmp_path / "calls").read_text() == printed
    assert printed.startswith(f"{tmp_path}\n{ROOT / 'slurm'}\nvenv:{sys.prefix}\nsbatch\n--parsable\n")


def test_the_job_in_which_it_is_called_is_another_one(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a notebook on a node, or under salloc."""
    inside = {"SLURM_NTASKS": "3", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "notebook", "SLURM_STEP_ID": "0", "SLURM_CONF": "kept"}
    for name, value in inside.items():
        monkeypatch.setenv(name, value)
    program(tmp_path, "squeue", "", monkeypatch)
    program(tmp_path, "sbatch", "env | grep ^SLURM_", monkeypatch)
    assert run("--nodes=2", "--gpus_per_node=4", "--parallel.group_size=2", "--submit", *given) == 0
    printed = capsys.readouterr()
    assert "groups:   4 of 2 ranks, on 2 nodes" in printed.err and printed.out == "SLURM_CONF=kept\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpus_per_node=4", "--trainer.devices=2"], "trainer.devices is 2; allowed: auto, or 4 as --ranks_per_node sets"),
        (
            ["--gpus_per_node=7", "--parallel.group_size=2"],
            "allowed: parallel.group_size 1, or --ranks_per_node 6 and",
        ),
        (["--gpus_per_node=8", "--ranks_per_node=6"], "8 GPUs and 6 ranks; allowed: --ranks_per_node 8, or parallel.leave_idle"),
        (["--parallel.group_size=2"], "a node would have 1 ranks; allowed: --gpus_per_node or --ranks_per_node as a multiple of"),
        (["--time=soon"], "time is 'soon'; allowed: minutes"),
        (["--nodes=0"], "--nodes is '0'; allowed: a whole number from 1 on"),
        (["--rate=fast"], "--rate is 'fast'; allowed: more than 0 images/s of one group"),
        (["--nodes"], "--nodes: expected one argument"),
        (["--gpus-per-node=8"], "there is no option --gpus-per-node; did you mean --gpus_per_node?"),
        (["--partitoin=gpu"], "there is no option --partitoin; did you mean --partition?"),
        (["--watch"], "there is no option --watch; allowed: --nodes, "),
        (["--only=k1"], "--only generates nothing, and a job does; allowed: hybridiff generate --only"),
        (["--smapling.steps=3"], "smapling"),
        (["--data.prompts=s3://b/p.jsonl?token=abcdef12"], "data.prompts holds a secret, and SLURM shows the arguments of a job"),
    ],
)
def test_mistakes_end_in_one_line_that_advises_its_own_options(
    given: list[str], options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*given, *options) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("submit: error: ") and message in printed.err and printed.err.count("\n") == 1
    assert printed.out == ""


@pytest.mark.parametrize("command", [["submit", "--nodes=x"], ["submit", "--help"], ["status"], ["status", "--help"]])
def test_help_and_mistakes_load_no_library(command: list[str]) -> None:
    watched = 'assert not {"torch", "lightning", "diffusers", "pyarrow", "fsspec"} & set(sys.modules), sorted(sys.modules)'
    call = f"try: code = main({command})\nexcept SystemExit as ending: code = ending.code"
    program = f"import sys\nfrom hybridiff.cli import main\n{call}\n{watched}\nsys.exit(code)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == (0 if "--help" in command else 2), done.stderr
    assert "Traceback" not in done.stderr and ("Exit codes: " in done.stdout) == ("--help" in command)


def test_gpus_that_are_left_idle_need_no_counting(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--gpus_per_node=7", "--parallel.group_size=2", "--parallel.leave_idle=true", *given) == 0
    printed = capsys.readouterr()
    assert "groups:   3 of 2 ranks, on 1 node\n" in printed.err and " RANKS_PER_NODE=6 sbatch " in printed.out


def test_an_environment_of_the_users_own_is_not_replaced(
    given: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYBRIDIFF_ENV", "apptainer:/image.sif")
    assert run(*given) == 0
    assert "HYBRIDIFF_ENV" not in capsys.readouterr().out


@pytest.mark.usefixtures("no_slurm")
def test_without_slurm_nothing_is_submitted(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--submit", *given) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "submit: error: there is no sbatch here; allowed: --submit on a machine that has SLURM"
    )


@pytest.mark.parametrize(
    ("squeue", "sbatch", "code", "said"),
    [
        ("echo no controller >&2; exit 1", "echo 14", 1, "submit: error: ServiceError: squeue: exit code 1: no controller"),
        ("", "echo no such partition >&2; exit 3", 3, ""),
        (
            "echo '12|hybridiff|hybridiff:/elsewhere'; echo '13|word|(null)'",
            "echo '14;cluster'",
            0,
            "progress: hybridiff status ",
        ),
    ],
)
@pytest.mark.usefixtures("no_slurm")
def test_what_slurm_answers_decides_the_exit_code(
    given: list[str],
    squeue: str,
    sbatch: str,
    code: int,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program(tmp_path, "squeue", squeue, monkeypatch)
    program(tmp_path, "sbatch", sbatch, monkeypatch)
    assert run("--submit", *given) == code
    printed = capsys.readouterr()
    assert printed.out == ("14\n" if code == 0 else "") and "share its shards" not in printed.err
    assert printed.err.splitlines()[-1].startswith(said)


@pytest.mark.usefixtures("no_slurm")
def test_a_second_job_on_an_output_shares_its_shards(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "squeue", f"echo '12|any|hybridiff:{tmp_path / 'corpus'}'", monkeypatch)
    program(tmp_path, "sbatch", "echo 14", monkeypatch)
    assert run("--submit", *given) == 0
    printed = capsys.readouterr()
    assert printed.out == "14\n" and "job 12 in the queue writes the same output: the jobs share its shards\n" in printed.err


def test_a_complete_dataset_needs_no_job_and_one_with_failed_rows_may(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = submit.parser().parse_args([])
    job, *_ = submit.plan(parse(given), options)
    corpus = Corpus(str(tmp_path / "corpus"))
    corpus.start_run(job.record)
    for index in range(5):
        failed = int(index == 3)
        marker = {"shard": index, "fingerprint": corpus.fingerprint, "files": {}, "rows": 2, "ok": 2 - failed, "failed": failed}
        corpus.publish(f"commits/{index:05d}.json", json.dumps(marker).encode())
    assert run("--submit", "--rate=1", *given) == 0
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err == f"{corpus.url} is complete: there is nothing to submit\n"
    assert run("--rate=1", "--retry_failed", *given) == 0
    printed = capsys.readouterr()
    assert "left:     1 image in 1 of 5 shards" in printed.err and "--retry_failed" in printed.out
