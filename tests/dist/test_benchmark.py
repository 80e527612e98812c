"""The benchmark on two real ranks: what it counts is what the arithmetic says."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hybridiff.models.cuts import choose_cut
from jobs.benchmark.config import NetworkConfig, SettingConfig
from jobs.benchmark.costs import pair_bytes, read_pattern
from jobs.benchmark.networks import load_network
from jobs.benchmark.pipelines import capture_call
from tests.dist.processes import run
from tests.optional import needs

STEPS, BATCH, ELEMENTS = 8, 2, 4 * 16 * 16
CHECKSUMS = 2 * 8  # bytes; the first exchange of a generation also compares the arguments of the ranks


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    needs("matplotlib", "bench")
    directory: Path = tmp_path_factory.mktemp("bench")
    smaller = ["--timing.rounds=1", "--fidelity.converged=0", "--costs.repeats=1", "--bytes=null"]
    written = [f"--plot={directory / 'frontier.png'}", f"--report={directory / 'report.json'}"]
    finished = run(2, "jobs/benchmark", "--config", "configs/bench/smoke.yaml", *smaller, *written).succeeded()
    assert (directory / "frontier.png").read_bytes().startswith(b"\x89PNG")
    lines = [line for line in finished.output.splitlines() if line]
    found: dict[str, Any] = json.loads(lines[-1])
    assert found == json.loads((directory / "report.json").read_text())
    assert found["complete"] and any(line.startswith("| data parallel ") for line in lines)
    assert "round 1 of 1, row 2 of 5, full, group of 2: " in finished.output
    return found


def first_call() -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The denoiser, and its arguments in the first step."""
    network = load_network(NetworkConfig(model="shapes-xl"), BATCH, 11, torch.device("cpu"))
    return network.pipeline.unet, *capture_call(network, SettingConfig(STEPS), range(BATCH))


@pytest.mark.timeout(300)
def test_the_baseline_is_first_and_on_single_ranks(report: dict[str, Any]) -> None:
    row = report["tables"][0]["rows"][0]
    assert (row["name"], row["group_size"], row["speed"]["speedup"], row["speed"]["ideal"]) == ("data parallel", 1, 1.0, 1.0)
    assert row["speed"]["traffic"]["collectives_per_step"] == row["speed"]["traffic"]["bytes_per_step"] == 0
    assert row["fidelity"]["baseline"]["psnr_worst"] == 100.0


def test_a_pair_of_full_steps_generates_the_same_with_one_exchange_a_step(report: dict[str, Any]) -> None:
    row = report["tables"][0]["rows"][1]
    assert row["speed"]["traffic"]["collectives_per_step"] == 1
    assert row["speed"]["traffic"]["bytes_per_step"] * STEPS == STEPS * 2 * BATCH * ELEMENTS * 4 + CHECKSUMS
    assert row["speed"]["ideal"] == 2.0 and row["speed"]["speedup"] > 0
    assert row["fidelity"]["baseline"]["psnr_worst"] == 100.0


def test_the_papers_window_has_one_more_exchange(report: dict[str, Any]) -> None:
    row = report["tables"][0]["rows"][2]
    assert row["speed"]["steps"] == {"full": 6.0, "half": 2.0}
    assert row["speed"]["traffic"]["collectives_per_step"] * STEPS == STEPS + 1
    cut = choose_cut(*first_call(), 2)
    sent = pair_bytes(cut, ELEMENTS, read_pattern("F3 H2 F3"), BATCH, 4)
    assert row["speed"]["traffic"]["bytes_per_step"] * STEPS == sent + CHECKSUMS
    assert row["speed"]["traffic"]["bytes_per_image"] * BATCH == sent + CHECKSUMS
    share = report["largest_share"]
    assert share == cut.largest_share
    assert row["speed"]["ideal"] == pytest.approx(2 * STEPS / (6 + 2 * share))
    assert row["fidelity"]["ideal"] == pytest.approx(row["speed"]["ideal"])
    assert 10 < row["fidelity"]["baseline"]["psnr_worst"] < 99


def test_a_row_with_its_own_solver_is_also_compared_with_that_solvers_images(report: dict[str, Any]) -> None:
    rows = report["tables"][0]["rows"]
    assert [row["fidelity"]["own"] is None for row in rows] == [True, True, True, True, False]
    assert rows[4]["speed"]["steps"] == {"full": 5.0} and rows[4]["scheduler"] == "DPMSolverMultistep"
