"""The evaluation as users run it: the same figures on any number of ranks, and after being killed or stopped."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.dist.processes import finish, kill, run, start
from tests.evaluate.evaluations import extractors, figures, make_images, noisy, rows, torchscript, write_corpus

ROWS = 60


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two corpora of several shards, and a small network."""
    folder: Path = tmp_path_factory.mktemp("corpora")
    write_corpus(folder / "fast", noisy(make_images(ROWS)), shard_size=6)
    write_corpus(folder / "full", make_images(ROWS), shard_size=7)
    extractors(folder, inception={"path": str(torchscript(folder / "small.pt")), "size": 32})
    return folder


def arguments(folder: Path, name: str, *more: str) -> list[str]:
    options = ["--metrics=psnr,ssim,fid,prdc", f"--extractors={folder / 'extractors.yaml'}", "--trainer.accelerator=cpu"]
    options += ["-o", str(folder / "results"), "--name", name, "--bootstrap=20", "--no_progress"]
    return ["jobs/evaluate.py", str(folder / "fast"), "--against", str(folder / "full"), *options, *more]


@pytest.fixture(scope="module")
def alone(corpora: Path) -> dict[str, Any]:
    """The result of one rank."""
    output = run(1, *arguments(corpora, "alone")).succeeded().output
    assert json.loads(output.splitlines()[-1])["results"] == [str(corpora / "results/evaluation/alone.json")]
    return comparable(corpora, "alone")


def comparable(folder: Path, name: str) -> dict[str, Any]:
    """Everything of a result that must not differ, with features' rounding left out."""
    found = {key: value for key, value in figures(folder / "results", name).items() if key not in ("name", "created", "metrics")}
    for metric in ("fid", "precision", "recall", "density", "coverage"):
        found[metric] = round(figures(folder / "results", name)["metrics"][metric]["value"], 6)
    return found | {"rows of the table": rows(folder / "results", name)}


@pytest.mark.timeout(300)
def test_ranks_of_torchrun_and_of_lightning_find_the_same(corpora: Path, alone: dict[str, Any]) -> None:
    for name, ranks, more in (("torchrun", 3, []), ("lightning", 1, ["--trainer.devices=2"])):
        output = run(ranks, *arguments(corpora, name, *more)).succeeded().output
        assert output.count("result:") == 1
        assert comparable(corpora, name) == alone


@pytest.mark.timeout(300)
def test_killed_and_run_again(corpora: Path, alone: dict[str, Any]) -> None:
    process = start(2, *arguments(corpora, "killed", "--batch_size=1"))
    parts = corpora / "results/evaluation/killed.parts"
    try:
        _wait(lambda: len(list(parts.glob("*-corpus0-*"))) >= 2, process)
    finally:
        kill(process)
    assert not (corpora / "results/evaluation/killed.json").exists()
    run(2, *arguments(corpora, "killed", "--batch_size=1")).succeeded()
    assert comparable(corpora, "killed") == alone and not parts.exists()


@pytest.mark.timeout(300)
def test_stopped_by_a_signal_and_run_again(corpora: Path, alone: dict[str, Any]) -> None:
    process = start(1, *arguments(corpora, "stopped", "--batch_size=1"))
    parts = corpora / "results/evaluation/stopped.parts"
    _wait(lambda: any(parts.glob("*")), process)
    os.kill(process.pid, signal.SIGTERM)
    output = finish(process)
    assert process.returncode == 85 and "stopped by SIGTERM; what is committed stays" in output
    run(1, *arguments(corpora, "stopped", "--batch_size=1")).succeeded()
    assert comparable(corpora, "stopped") == alone


@pytest.mark.timeout(300)
def test_all_ranks_end_with_the_code_of_a_requirement(corpora: Path, alone: dict[str, Any]) -> None:
    required = run(1, *arguments(corpora, "lightning", "--trainer.devices=2", "--require=psnr >= 90"))
    assert required.code == 4 and "not met" in required.output
    under_torchrun = run(2, *arguments(corpora, "missing", "--metrics=fd_dinov2"))
    assert under_torchrun.code == 1 and "evaluate: error: the metric fd_dinov2 needs" in under_torchrun.output


def _wait(holds: Any, process: Any) -> None:
    """Waits until something is there, or the process has ended."""
    deadline = time.monotonic() + 120
    while not holds():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
