"""The job as users run it: the same bytes whatever the number of groups, and after being killed."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest
from PIL import Image

from tests.dist.processes import Finished, kill, run, start

PROMPTS = [
    "a small red circle on a blue background at the left",
    "a large green square on a white background in the middle",
    "a small yellow ring at the top and a small black cross at the bottom on a purple background",
    "a large cyan triangle on a black background at the right",
    "a small white diamond on a green background at the top",
    "a large orange cross on a blue background at the bottom",
    "a small purple circle on a yellow background in the middle, and so on and on until the window is full of words",
]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [{"prompt": p, "source": f"row {i}"} | ({"negative_prompt": "red"} if i == 3 else {}) for i, p in enumerate(PROMPTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def arguments(prompts: Path, url: Path, group_size: int, *more: str) -> list[str]:
    given = {
        "data.prompts": prompts,
        "data.batch_size": 2,
        "sampling.steps": 12,
        "parallel.schedule.tolerance": 3.0,
        "parallel.schedule.min_full_steps": 3,
        "model.path": "shapes-xl",
        "output.url": url,
        "output.shard_size": 3,
        "parallel.group_size": group_size,
        "trainer.accelerator": "cpu",
        "trainer.logger": True,
        "trainer.default_root_dir": url.parent / "logs",
    }
    return ["jobs/generate.py", *(f"--{name}={value}" for name, value in given.items()), *more]


def contents(url: Path) -> dict[str, bytes]:
    """All files of a corpus that must not differ from run to run."""
    found = {p.relative_to(url).as_posix(): p.read_bytes() for p in sorted(url.rglob("*")) if p.is_file()}
    return {name: data for name, data in found.items() if not name.startswith(("stats/", "leases/")) and name != "run.json"}


def verify(url: Path) -> dict[str, int]:
    report: dict[str, int] = json.loads(run(1, "jobs/verify.py", str(url)).succeeded().output.splitlines()[-1])
    return report


@pytest.fixture(scope="module")
def one_pair(prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    url: Path = tmp_path_factory.mktemp("one_pair") / "corpus"
    return url, run(2, *arguments(prompts, url, 2)).succeeded()


@pytest.mark.timeout(300)
def test_a_pair_makes_a_whole_corpus(one_pair: tuple[Path, Finished]) -> None:
    url, finished = one_pair
    assert verify(url) == {"shards": 3, "rows": 7, "ok": 7, "failed": 0, "missing": 0, "corrupt": 0, "unreadable": 0}
    assert f"corpus:        {url}" in finished.output and "images:        7" in finished.output
    (metrics,) = (url.parent / "logs").rglob("metrics.csv")
    assert {"images_per_s", "seconds_per_image", "failed_rows"} <= set(metrics.read_text().splitlines()[0].split(","))
    assert Image.open(url / "contact-sheet.png").width >= 128
    rows: list[dict[str, Any]] = ds.dataset(url / "metadata", format="parquet").to_table().to_pylist()
    assert [row["prompt"] for row in rows] == PROMPTS
    assert [row["source"] for row in rows] == [f"row {i}" for i in range(7)]
    assert [row["negative_prompt"] for row in rows] == [None, None, None, "red", None, None, None]
    for row in rows:
        assert row["schedule"] == "adaptive" and len(row["discrepancy"]) == row["steps_full"] >= 5
        assert row["steps_full"] + row["steps_half"] + row["steps_skipped"] == 12 and row["steps_skipped"] >= 3
        assert 3 <= row["tau1"] < row["tau2"] <= 10
    assert [row["prompt_truncated"] for row in rows] == [False] * 6 + [True]
    assert {row["scheduler"] for row in rows} == {"DDIMScheduler"} and {row["status"] for row in rows} == {"ok"}


@pytest.mark.timeout(400)
def test_two_pairs_write_the_same_bytes(prompts: Path, one_pair: tuple[Path, Finished], tmp_path: Path) -> None:
    finished = run(4, *arguments(prompts, tmp_path / "corpus", 2), timeout_s=360).succeeded()
    assert finished.output.count("contact sheet: ") == 1  # the first rank reports for both pairs
    assert contents(tmp_path / "corpus") == contents(one_pair[0])


@pytest.mark.timeout(300)
def test_single_ranks_generate_the_same_images(prompts: Path, one_pair: tuple[Path, Finished], tmp_path: Path) -> None:
    url = tmp_path / "corpus"
    run(1, *arguments(prompts, url, 1, "--trainer.devices=2")).succeeded()  # Lightning starts the second rank itself
    tables = [ds.dataset(u / "metadata", format="parquet").to_table() for u in (url, one_pair[0])]
    assert all(tables[0][name] == tables[1][name] for name in ("key", "seed", "prompt"))
    for key in tables[0]["key"].to_pylist():
        alone, paired = (read_image(u, key) for u in (url, one_pair[0]))
        error = np.square((alone.astype(float) - paired) / 255).mean()
        assert error == 0 or -10 * np.log10(error) >= 80, key


def read_image(url: Path, key: str) -> np.ndarray:
    import tarfile

    for path in sorted((url / "images").glob("*.tar")):
        with tarfile.open(path) as tar:
            if f"{key}.png" in tar.getnames():
                return np.asarray(Image.open(tar.extractfile(f"{key}.png")))  # type: ignore[arg-type]
    raise AssertionError(f"no image {key}")


@pytest.mark.timeout(400)
def test_killed_in_mid_shard_and_run_again(prompts: Path, one_pair: tuple[Path, Finished], tmp_path: Path) -> None:
    url = tmp_path / "corpus"
    process = start(2, *arguments(prompts, url, 2))
    try:
        deadline = time.monotonic() + 240
        while not list(url.glob("images/.00001.tar.*.tmp")):  # the second shard is open, and not committed
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
            time.sleep(0.005)
    finally:
        kill(process)
        process.communicate()
    assert not (url / "commits/00001.json").exists()
    before = {p: p.stat().st_mtime_ns for p in (url / "commits").glob("*.json")}
    run(2, *arguments(prompts, url, 2)).succeeded()
    assert contents(url) == contents(one_pair[0])
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in before.items())


@pytest.mark.timeout(200)
def test_a_second_run_loads_no_model_and_another_configuration_is_refused(prompts: Path, one_pair: tuple[Path, Finished]) -> None:
    url, _ = one_pair
    before = contents(url)
    again = run(2, *arguments(prompts, url, 2)).succeeded()
    assert "images:        7" in again.output
    assert "generating" in one_pair[1].output and "generating" not in again.output
    other = run(1, *arguments(prompts, url, 1, "--sampling.seed=1"))
    assert other.code == 2
    assert "parallel.group_size is 2 there, 1 here; sampling.seed is 0 there, 1 here" in other.output
    assert contents(url) == before


@pytest.mark.timeout(200)
def test_a_mistake_is_one_line_on_every_rank_and_nothing_is_written(tmp_path: Path) -> None:
    finished = run(2, *arguments(tmp_path / "missing.jsonl", tmp_path / "corpus", 2))
    assert finished.code != 0
    lines = [line for line in finished.output.splitlines() if line.startswith("generate: error: ")]
    assert lines and all("missing.jsonl" in line for line in lines)
    assert 'generate.py", line' not in finished.output  # no traceback of ours
    assert list(tmp_path.iterdir()) == []
