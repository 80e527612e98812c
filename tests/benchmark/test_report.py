"""The table, the record and the plot of made-up results."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hybridiff.errors import UsageError
from jobs.benchmark.config import BenchmarkConfig, FidelityConfig, NetworkConfig, SettingConfig
from jobs.benchmark.features import Distances
from jobs.benchmark.fidelity import Fidelity, Similarity
from jobs.benchmark.plot import check_plot, points, write_plot
from jobs.benchmark.report import Report, Row, Table, columns, render
from jobs.benchmark.speed import Speed, Traffic
from tests.optional import needs

SAME, NEAR = Similarity(100.0, 100.0, 1.0, 1.0), Similarity(48.25, 41.0, 0.99, 0.95)
SPEED = Speed(0.5, 2.0, 1.9, 0.95, 2.0, 2.0, 0.95, {"full": 50.0}, Traffic(1.0, 2e3, 1e5, 0.5, 17.5), None, [1.0])
BASE = Row("data parallel", "full", {}, 1, 50, "", None, Fidelity(1.0, 1.0, {"full": 50.0}, SAME, NEAR, None))
PAPER = Row("paper", "paper", {"k": 5}, 2, 50, "", None, Fidelity(2.1, 2.11, {"full": 45.0, "half": 5.0}, NEAR, NEAR, None))
FEWER = Row("fewer", "full", {}, 2, 25, "UniPC", None, Fidelity(4.0, 4.0, {"full": 25.0}, NEAR, NEAR, None))


def _report(*rows: Row) -> Report:
    network = NetworkConfig(model="shapes-xl")
    return Report(BenchmarkConfig(network, fidelity=FidelityConfig(converged=8)), 2, 0.56, [Table(SettingConfig(), list(rows))])


def test_the_table_is_markdown_and_aligned() -> None:
    lines = render([("row", ["a", "long name"]), ("x", ["1", "22"])])
    assert lines == ["| row       |  x |", "| --------- | -: |", "| a         |  1 |", "| long name | 22 |"]


def test_only_what_was_measured_has_a_column() -> None:
    headings = [heading for heading, _ in columns([BASE, PAPER])]
    assert headings[:4] == ["row", "F+H+P+S", "ideal", "ideal 0.5"]
    assert "s/image" not in headings and "PSNR by own solver dB" not in headings
    timed = dict(columns([replace(BASE, speed=SPEED), PAPER]))
    assert timed["s/image"] == ["0.500", ""] and timed["of ideal"] == ["95.0%", ""] and "peak MiB" not in timed


def test_cells() -> None:
    cells = dict(columns([BASE, PAPER]))
    assert cells["F+H+P+S"] == ["50+0+0+0", "45+5+0+0"]
    assert cells["PSNR by baseline dB"] == ["100.0 / 100.0", "48.2 / 41.0"]
    assert cells["SSIM by converged"] == ["0.990 / 0.950"] * 2


def test_distances_name_their_network() -> None:
    fidelity = Fidelity(1.0, 1.0, {"full": 50.0}, SAME, None, None, Distances(0.25, 1.5, 0.0123456))
    cells = dict(columns([BASE, replace(PAPER, fidelity=fidelity)]))
    assert cells["FID by baseline (shapes CLIP)"] == ["", "0.2500"] and cells["FID by rendered (shapes CLIP)"] == ["", "1.500"]
    assert cells["LPIPS (shapes CLIP)"] == ["", "0.01235"]


def test_a_table_without_rows_is_left_out() -> None:
    assert _report().lines() == []


def test_the_record_is_json_with_versions_and_configuration() -> None:
    record = json.loads(json.dumps(_report(BASE, PAPER).record()))
    assert record["tables"][0]["rows"][1]["fidelity"]["baseline"]["psnr_median"] == 48.25
    assert record["config"]["network"]["model"] == "shapes-xl" and record["versions"]["torch"]


def test_lines_of_the_plot() -> None:
    table = _report(BASE, FEWER, PAPER, replace(PAPER, speed=SPEED)).tables[0]
    assert points(table, "baseline") == {
        "fewer steps, UniPC, group of 2": [(4.0, 48.25)],
        "paper, group of 2": [(1.9, 48.25), (2.1, 48.25)],
    }
    assert points(table, "own") == {}


def test_the_plot_is_a_png(tmp_path: Path) -> None:
    needs("matplotlib", "bench")
    write_plot(_report(BASE, PAPER, FEWER), str(tmp_path / "new" / "a.png"))
    assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_without_matplotlib_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.benchmark.plot.find_spec", lambda name: None)
    check_plot(None)
    with pytest.raises(UsageError, match=r"matplotlib is not installed"):
        check_plot("a.png")
