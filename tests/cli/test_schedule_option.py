"""``parallel.schedule``: a schedule by name, by class path, with its options, from the command line and from YAML."""

import subprocess
import sys
from pathlib import Path

import pytest

from hybridiff.cli.config import parse
from hybridiff.config import ParallelConfig
from hybridiff.errors import UsageError
from hybridiff.schedule import Adaptive, Async, Full, Paper, Refresh, Schedule, schedule_spec
from tests.own_schedule import EveryOther

OWN = "tests.own_schedule.EveryOther"


def parsed(*arguments: str, yaml: str | None = None, folder: Path | None = None) -> Schedule:
    given = ["--model.path=m", "--data.prompts=prompts.txt", "--output.url=corpus"]
    if yaml is not None:
        assert folder is not None
        (folder / "job.yaml").write_text(yaml)
        given += ["--config", str(folder / "job.yaml")]
    return parse([*given, *arguments]).config.parallel.schedule


@pytest.mark.parametrize(
    ("arguments", "schedule"),
    [
        ([], Adaptive()),
        (["--parallel.schedule=full"], Full()),
        (["--parallel.schedule", "adaptive", "--parallel.schedule.tolerance", "0.2"], Adaptive(tolerance=0.2)),
        (["--parallel.schedule.tolerance=0.2"], Adaptive(tolerance=0.2)),
        (["--parallel.schedule=paper", "--parallel.schedule.k=7"], Paper(k=7)),
        (["--parallel.schedule=Async", "--parallel.schedule.time_shift=true"], Async(time_shift=True)),
        (["--parallel.schedule=hybridiff.schedule.Refresh", "--parallel.schedule.last=-5"], Refresh(last=-5)),
        (['--parallel.schedule={"class_path": "paper", "init_args": {"tau_cap": 9}}'], Paper(tau_cap=9)),
        ([f"--parallel.schedule={OWN}", "--parallel.schedule.warm_up=2"], EveryOther(warm_up=2)),
    ],
)
def test_on_the_command_line(arguments: list[str], schedule: Schedule) -> None:
    assert parsed(*arguments) == schedule


@pytest.mark.parametrize(
    ("value", "arguments", "schedule"),
    [
        ("adaptive", [], Adaptive()),
        ("{class_path: adaptive, init_args: {max_skip_steps: 8}}", [], Adaptive(max_skip_steps=8)),
        ("{class_path: Refresh, init_args: {first: 3}}", [], Refresh(first=3)),
        ("{class_path: refresh, init_args: {last: 30}}", ["--parallel.schedule.first=4"], Refresh(first=4, last=30)),
        ("{class_path: refresh, init_args: {last: 30}}", ["--parallel.schedule=paper"], Paper()),
        (f"{{class_path: {OWN}, init_args: {{warm_up: 3}}}}", [], EveryOther(warm_up=3)),
    ],
)
def test_in_yaml(value: str, arguments: list[str], schedule: Schedule, tmp_path: Path) -> None:
    assert parsed(*arguments, yaml=f"parallel: {{schedule: {value}}}\n", folder=tmp_path) == schedule


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parallel.schedule=fast"], r"parallel\.schedule is 'fast'; allowed: adaptive, full, paper, refresh, async, or the"),
        (["--parallel.schedule=mine.Fast"], r"parallel\.schedule: .*No module named 'mine'; allowed: adaptive"),
        (["--parallel.schedule=hybridiff.config.DataConfig"], r"parallel\.schedule: .*not .* a subclass of Schedule"),
        (
            ["--parallel.schedule=paper", "--parallel.schedule.tolerance=1"],
            r"parallel\.schedule\.tolerance is .* options of schedule paper",
        ),
        (
            ["--parallel.schedule=full", "--parallel.schedule.k=1"],
            r"parallel\.schedule\.k is given; allowed: .* full, which are none",
        ),
        (["--parallel.schedule=paper", "--parallel.schedule.k=2.5"], r"parallel\.schedule\.k is '2\.5'; allowed: a whole number"),
        (
            ["--parallel.schedule=paper", "--parallel.schedule.tau_cap=x"],
            r"parallel\.schedule\.tau_cap is 'x'; allowed: a whole number",
        ),
        (["--parallel.schedule.tolerance=abc"], r"parallel\.schedule\.tolerance is 'abc'; allowed: a number"),
        (["--parallel.schedule.tolerance=0"], r"parallel\.schedule\.tolerance is 0\.0; allowed: more than 0"),
        (
            [f"--parallel.schedule={OWN}", "--parallel.schedule.warm_up=0"],
            r"parallel\.schedule\.warm_up is 0; allowed: 1 or more",
        ),
        (["--schedule.tolerance=1"], "schedule.tolerance"),
    ],
)
def test_what_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        parsed(*arguments)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["def (", "raise RuntimeError('x')", "import no_such_module", "1 / 0"])
def test_a_module_that_cannot_be_imported_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "faulty_schedule.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"^parallel\.schedule.*; allowed: adaptive") as refused:
        parsed("--parallel.schedule=faulty_schedule.Fast")
    assert "\n" not in str(refused.value)


def test_a_schedule_that_is_no_dataclass_has_no_options_to_record() -> None:
    class Bare(Full):
        pass

    class Plain(Schedule):
        kinds = Full.kinds
        begin = Full.begin

    assert ParallelConfig(schedule=Bare()).schedule.name == "Bare"
    with pytest.raises(UsageError, match=r"parallel\.schedule is 'Plain'; allowed: a schedule that is a frozen dataclass"):
        ParallelConfig(schedule=Plain())


def test_what_is_recorded_can_be_given_again(tmp_path: Path) -> None:
    for schedule in (Adaptive(tolerance=0.2), Paper(k=7), EveryOther(warm_up=2)):
        spec = schedule_spec(schedule)
        assert spec["class_path"] == (OWN if isinstance(schedule, EveryOther) else schedule.name)
        assert parsed(yaml=f"parallel: {{schedule: {spec}}}".replace("None", "null"), folder=tmp_path) == schedule
    assert Adaptive(tolerance=0.2).options(defaults=False) == {"tolerance": 0.2}


def test_options_are_known_without_torch() -> None:
    code = "import sys, hybridiff.config, hybridiff.schedule; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
