"""The experiments, on few steps and one caption."""

import json
import signal
from collections.abc import Iterator

import pytest

from jobs.benchmark import experiments
from jobs.benchmark.config import FidelityConfig
from jobs.benchmark.progress import SIGNALS


def test_every_variant_has_a_row_at_each_setting(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(experiments, "SETTINGS", ((7, 5.0), (6, 2.0)))
    monkeypatch.setattr(experiments, "PATTERNS", ("SF",))
    monkeypatch.setattr(experiments, "TOLERANCES", (1e-9, 1e9))
    monkeypatch.setattr(experiments, "CONTROLLERS", ((1.0, 2, 1e9, 1e9),))
    monkeypatch.setattr("sys.argv", ["experiments.py", "--model", "shapes-sd3", "--captions", "1"])
    assert experiments.main() == 0
    *table, last = capsys.readouterr().out.splitlines()
    record = json.loads(last)
    rows = record["rows"]
    assert record["complete"]
    controller = "damped line of 1.0, order 2, tolerance 1000000000.0, 1000000000.0 to skip"
    adaptive = [f"adaptive, tolerance {tolerance}" for tolerance in (1e-9, 1e9)]
    expected = [*(f"SF, {name}" for name in experiments.PREDICTIONS), controller, *adaptive]
    assert [row["variant"] for row in rows] == [*expected, *adaptive]
    assert [(row["steps"], row["guidance"]) for row in rows] == [(7, 5.0)] * 9 + [(6, 2.0)] * 2
    found = {row["variant"]: row for row in rows[:9]}
    assert {found[f"SF, {name}"]["ideal"] for name in experiments.PREDICTIONS} == {14 / 6}  # the last but one is skipped
    assert (found[adaptive[0]]["ideal"], found[adaptive[0]]["worst"]) == (2.0, 100.0)
    assert 20 < found["SF, line"]["worst"] < 100 and found[controller]["ideal"] == 14 / 6
    assert len(table) == 2 + len(rows) and table[2].startswith("| SF, last value | 7, 5.0 | 2.33 | ")


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


def test_an_interrupted_run_prints_what_it_has_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def rows(*_: object) -> Iterator[dict[str, object]]:
        yield {"variant": "first", "steps": 3, "guidance": 5.0, "ideal": 2.0, "median": 50.0, "worst": 40.0}
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(experiments, "run", rows)
    monkeypatch.setattr("sys.argv", ["experiments.py", "--captions", "1"])
    before = [signal.getsignal(number) for number in SIGNALS]
    try:
        assert experiments.main() == 143
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)
    *table, last = capsys.readouterr().out.splitlines()
    assert table[-1] == "| first | 3, 5.0 | 2.00 | 50.0 | 40.0 |"
    record = json.loads(last)
    assert not record["complete"] and [row["variant"] for row in record["rows"]] == ["first"]
