"""A benchmark that is killed keeps what it has measured."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.dist.processes import ROOT

TINY = "{untrained: unet, channels: [32, 64], transformer_layers: [1, 1], height: 64, width: 64, tokens: 4}"
ENDLESS = [
    "jobs/benchmark",
    f"--network={TINY}",
    "--settings=[{steps: 2}]",
    "--rows=[{schedule: full, name: again}]",
    "--timing={rounds: 1000000, batch: 1}",
]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def start(report: Path, *launcher: str) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *launcher, *ENDLESS, f"--report={report}"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def kill_after_the_second_row(process: subprocess.Popen[str], number: int) -> tuple[list[str], str]:
    """Lines of stdout, and stderr."""
    assert process.stdout is not None
    lines: list[str] = []
    try:
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if line.startswith("round 1 of 1000000, row 2 of 2, again: "):
                break
        else:
            pytest.fail("\n".join([*lines, process.communicate()[1]]))
        process.send_signal(number)
        rest, errors = process.communicate(timeout=60)
        return [*lines, *rest.splitlines()], errors
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def rows(record: dict[str, Any]) -> list[str]:
    return [row["name"] for row in record["tables"][0]["rows"]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_prints_the_table_so_far(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path / "a.json")
    lines, errors = kill_after_the_second_row(process, number)
    assert process.returncode == 128 + number, errors
    printed = json.loads(lines[-1])
    assert not printed["complete"] and rows(printed) == ["data parallel", "again"]
    assert json.loads((tmp_path / "a.json").read_text()) == printed
    assert sum(line.startswith(("| data parallel ", "| again ")) for line in lines) == 2
    assert errors == f"benchmark: interrupted by {number.name}\n"


def test_a_killed_run_leaves_its_rows_in_the_report(tmp_path: Path) -> None:
    process = start(tmp_path / "a.json")
    kill_after_the_second_row(process, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    record = json.loads((tmp_path / "a.json").read_text())
    assert not record["complete"] and rows(record) == ["data parallel", "again"]
    assert record["tables"][0]["rows"][0]["speed"]["seconds_per_image"] > 0


def test_an_interrupted_torchrun_prints_the_table_so_far(tmp_path: Path) -> None:
    process = start(tmp_path / "a.json", *TORCHRUN)
    lines, errors = kill_after_the_second_row(process, signal.SIGTERM)
    records = [json.loads(line) for line in lines if line.startswith("{")]
    assert len(records) == 1, errors
    assert not records[0]["complete"] and rows(records[0]) == ["data parallel", "again"]
    assert json.loads((tmp_path / "a.json").read_text()) == records[0]
