"""The experiments, on few steps and one caption."""

import json

import pytest

from jobs.benchmark import experiments
from jobs.benchmark.config import FidelityConfig


def test_every_variant_has_a_row_at_each_setting(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(experiments, "SETTINGS", ((7, 5.0), (6, 2.0)))
    monkeypatch.setattr(experiments, "RHYTHMS", ("SF",))
    monkeypatch.setattr(experiments, "TOLERANCES", (1e-9, 1e9))
    monkeypatch.setattr(experiments, "CONTROLLERS", ((1.0, 2, 1e9, 1e9),))
    monkeypatch.setattr("sys.argv", ["experiments.py", "--model", "shapes-sd3", "--captions", "1"])
    assert experiments.main() == 0
    *table, last = capsys.readouterr().out.splitlines()
    rows = json.loads(last)["rows"]
    controller = "damped line of 1.0, order 2, tolerance 1000000000.0, 1000000000.0 to skip"
    adaptive = [f"adaptive, tolerance {tolerance}" for tolerance in (1e-9, 1e9)]
    expected = [*(f"SF, {how}" for how in experiments.PREDICTIONS), controller, *adaptive]
    assert [row["variant"] for row in rows] == [*expected, *adaptive]
    assert [(row["steps"], row["guidance"]) for row in rows] == [(7, 5.0)] * 9 + [(6, 2.0)] * 2
    found = {row["variant"]: row for row in rows[:9]}
    assert {found[f"SF, {how}"]["ideal"] for how in experiments.PREDICTIONS} == {14 / 6}  # the last but one is skipped
    assert (found[adaptive[0]]["ideal"], found[adaptive[0]]["worst"]) == (2.0, 100.0)
    assert 20 < found["SF, the line"]["worst"] < 100 and found[controller]["ideal"] == 14 / 6
    assert len(table) == 2 + len(rows) and table[2].startswith("| SF, carried on | 7, 5.0 | 2.33 | ")


def test_only_some_variants(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(experiments, "SETTINGS", ((3, 5.0),))
    monkeypatch.setattr("sys.argv", ["experiments.py", "--captions", "1", "--only", "tolerance 0.6"])
    assert experiments.main() == 0
    assert [row["variant"] for row in json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]] == ["adaptive, tolerance 0.6"]


@pytest.mark.parametrize("captions", ["0", "-1"])
def test_no_captions_are_refused(captions: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["experiments.py", "--captions", captions])
    assert experiments.main() == 2
    assert capsys.readouterr() == ("", f"experiments: error: captions is {captions}; allowed: 1 or more\n")


def test_nothing_is_tuned_on_the_benchmarks_captions() -> None:
    assert experiments.CAPTION_SEED not in (FidelityConfig().seed, 7)
