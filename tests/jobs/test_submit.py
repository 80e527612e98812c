"""jobs/submit.py without a SLURM: the plan, the batch script, and a look at a corpus."""

import json
from pathlib import Path

import pytest

from jobs import submit


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
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
