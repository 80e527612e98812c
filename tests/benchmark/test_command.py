"""The benchmark's configurations load, and what it cannot do is refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.benchmark import command as benchmark
from jobs.benchmark.config import CorpusConfig
from jobs.benchmark.costs import read_pattern
from jobs.benchmark.pipelines import build_schedule
from tests.optional import needs

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "bench").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_configuration_loads(path: Path) -> None:
    config = benchmark.parse(["--config", str(path)])
    for row in config.rows:
        assert build_schedule(row).name == row.schedule
    for part in (config.costs, config.bytes):
        assert part is None or all(read_pattern(pattern) for pattern in part.patterns)


def test_the_configurations_of_the_docs_exist() -> None:
    names = {path.stem for path in CONFIGS}
    assert {"smoke", "compute", "compute-mmdit", "fidelity-xl", "fidelity-sd3", "gpu-sdxl", "gpu-sd3"} <= names


def test_flags_win_over_the_file() -> None:
    config = benchmark.parse(["--config", str(CONFIGS[0]), "--settings", "[{steps: 7}]", "--report", "a.json"])
    assert (config.settings[0].steps, config.report) == (7, "a.json")


def test_a_bare_corpus_option_takes_the_defaults_at_any_position() -> None:
    corpus = CONFIGS[0].with_name("corpus.yaml")
    assert benchmark.parse(["--corpus"]).corpus == CorpusConfig()
    assert benchmark.parse(["--corpus.rounds=2", "--corpus"]).corpus == CorpusConfig(rounds=2)
    from_file = benchmark.parse(["--config", str(corpus)]).corpus
    assert from_file != CorpusConfig() and benchmark.parse(["--config", str(corpus), "--corpus"]).corpus == from_file
    assert benchmark.parse(["--corpus", "--network.untrained=unet", "--timing={}"]).corpus == CorpusConfig()


TIMED = ["--network.untrained=unet", "--timing={}"]
REFUSED = {
    "nothing to measure": ["--network.model=shapes-xl"],
    "rows.schedule is 'fast'; allowed: adaptive, full, paper": [*TIMED, "--rows=[{schedule: fast}]"],
    "options of schedule full are none": [*TIMED, "--rows=[{options: {k: 3}}]"],
    "rows.group_size is 2 with timing; allowed: a divisor of the 1 ranks (torchrun": [*TIMED, "--rows=[{group_size: 2}]"],
    "allowed: a bundled name": ["--network.model=/no/such", "--timing={}"],
    "allowed: unet, mmdit": ["--network.untrained=vit", "--timing={}"],
    "bytes.network is 'vit'": ["--bytes.network=vit"],
    "rowz": [*TIMED, "--rowz=1"],
    "steps": [*TIMED, "--settings=[{steps: many}]"],
    "bytes.patterns is 'F'": ["--bytes.patterns=[F]"],
    "costs.patterns is 'F5 P5'; allowed: F (full), H (half) and S (skip)": [*TIMED, "--costs.patterns=[F5 P5]"],
    "report is '/proc/no/report.json'; allowed: a file that can be written": [*TIMED, "--report=/proc/no/report.json"],
    "report is '/tmp'; allowed: a file that can be written": [*TIMED, "--report=/tmp"],
    "network.height is 100; allowed: multiples of 8": [*TIMED, "--network.height=100"],
    "network.heads is 2; allowed: only with an untrained mmdit": [*TIMED, "--network.heads=2"],
    "corpus.formats is 'gif'; allowed: png, jpg, webp": ["--corpus.formats=[gif]"],
    "corpus.rounds is 0; allowed: 1 or more": ["--corpus", "--corpus.rounds=0"],
    "corpus.urls is nosuch://a: no file system for it": ["--corpus", "--corpus.urls=[nosuch://a]"],
    "there is nothing to measure": ["--corpus.images_per_prompt=0", "--corpus.megabytes=0", "--corpus.verified_megabytes=0"],
}


@pytest.mark.parametrize("message", REFUSED)
def test_refusals(message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["benchmark", *REFUSED[message]])
    assert benchmark.main() == 2
    captured = capsys.readouterr()
    assert all(line.startswith("loading ") for line in captured.out.splitlines())
    assert captured.err.startswith("benchmark: error: ") and captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.parametrize("option", ["report", "plot"])
def test_files_that_cannot_be_written_are_refused_before_anything_is_measured(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needs("matplotlib", "bench")
    monkeypatch.setattr("jobs.benchmark.measurement.measure", lambda *_: pytest.fail("it was measured"))
    (tmp_path / "file").touch()
    measured = ["--network.model=shapes-xl", "--fidelity={}"]
    monkeypatch.setattr("sys.argv", ["benchmark", *measured, f"--{option}={tmp_path}/file/a"])
    assert benchmark.main() == 2
    assert f"{option} is '{tmp_path}/file/a'; allowed: a file that can be written" in capsys.readouterr().err


def test_results_are_printed_before_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    report = tmp_path / "new" / "a.json"
    monkeypatch.setattr("sys.argv", ["benchmark", "--bytes={network: sd3-medium, patterns: [F1]}", f"--report={report}"])
    assert benchmark.main() == 1
    captured = capsys.readouterr()
    sent = json.loads(captured.out.splitlines()[-1])["bytes_per_image"]
    assert sent == {"F1": 2 * 2 * 16 * 128 * 128}  # both branches' predictions in half precision
    assert captured.err == (
        "benchmark: error: the results are above, but a file could not be written: [Errno 28] No space left on device\n"
    )
