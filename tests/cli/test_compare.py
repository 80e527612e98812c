"""``hybridiff compare``: what is refused before anything is written, the sample, and one real comparison."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybridiff import cli
from hybridiff.cli import compare
from hybridiff.config import DataConfig, SamplingConfig
from hybridiff.errors import UsageError
from hybridiff.prompts.plan import Plan, make_plan
from hybridiff.storage.folder import Folder
from tests.cli.refusals import refusal

ROOT = Path(__file__).parents[2]
JOB = ("--model.path=shapes-xl", "--sampling.steps=16", "--data.batch_size=4", "--trainer.accelerator=cpu")


def prompts(folder: Path, count: int = 30) -> Path:
    path = folder / "prompts.jsonl"
    rows: list[dict[str, Any]] = [
        {"prompt": f"a red circle {n}", "category": "ab"[n % 2], "seed": n if n % 3 else None} for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no job is given; usage: hybridiff compare [-h] [--rows N]"),
        (["--rows", "1"], "--rows is '1'; allowed: a whole number from 2 on"),
        (["--parallel.schedule=full"], "parallel.schedule is 'full'; allowed: another schedule"),
        (["--dry_run"], "--dry_run is 'given'; allowed: options of a job alone"),
        (["--metrics=psnrr"], "did you mean psnr"),
        (["--metrics=fid"], "fid"),
        (["--require=psnr"], "--require is 'psnr'; allowed: comparisons"),
        (["--require=fid < 1"], "--require names 'fid'"),
        (["--parallel.schedule.tolerance=-1"], "tolerance"),
        (["--sampling.stepz=3"], "did you mean sampling.steps?"),
        (["--output=https://user:word@host/x"], "-o"),
        (["--output=nosuch://x"], "-o is nosuch://x: no file system"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(
    given: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = tmp_path / "corpus"
    job = [*JOB, f"--data.prompts={prompts(tmp_path)}", f"--output.url={url}"] if given else []
    assert message in refusal(["compare", *job, *given], tmp_path, capsys)


def test_it_is_refused_under_a_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare, "has_parent", lambda: True)
    assert cli.main(["compare", *JOB, f"--data.prompts={prompts(tmp_path)}", f"--output.url={tmp_path / 'corpus'}"]) == 2
    assert "compare starts its own ranks" in capsys.readouterr().err


def plan_of(path: Path, images: int) -> Plan:
    return make_plan(DataConfig([str(path)]), SamplingConfig(images_per_prompt=images), 100)


@pytest.mark.parametrize("images", [1, 3])
def test_the_sample_has_keys_seeds_and_columns_of_the_job(images: int, tmp_path: Path) -> None:
    whole = plan_of(prompts(tmp_path), images)
    table = whole.sampled(10)
    folder = Folder(str(tmp_path / "out"))
    compare._write_prompts(folder, table)
    before = (tmp_path / "out" / "prompts.parquet").stat().st_mtime_ns
    compare._write_prompts(folder, whole.sampled(10))
    assert (tmp_path / "out" / "prompts.parquet").stat().st_mtime_ns == before
    few = plan_of(tmp_path / "out" / "prompts.parquet", images)
    assert few.rows == 10 * images and few.user_schema == whole.user_schema
    known = {sample.key: sample for sample in whole.shard(0).samples}
    found = few.shard(0).samples
    assert all(known[sample.key] == sample for sample in found)
    assert [sample.key for sample in found] == [key for key in known if key in {sample.key for sample in found}]


def test_another_sample_is_refused_before_it_is_written(tmp_path: Path) -> None:
    whole, folder = plan_of(prompts(tmp_path), 1), Folder(str(tmp_path / "out"))
    compare._write_prompts(folder, whole.sampled(10))
    before = folder.read("prompts.parquet")
    with pytest.raises(UsageError, match=r"^-o is .*; allowed: another directory, as its prompts.parquet holds other rows"):
        compare._write_prompts(folder, whole.sampled(11))
    assert folder.read("prompts.parquet") == before


def test_the_sample_depends_on_keys_alone(tmp_path: Path) -> None:
    def keys(table: pa.Table) -> set[str]:
        return set(table["key"].to_pylist())

    rows = [{"key": f"k{n}", "prompt": f"text {n}"} for n in range(40)]
    for name, part in (("one", rows), ("two", rows[::-1])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    one, two = (plan_of(tmp_path / f"{name}.jsonl", 1) for name in ("one", "two"))
    assert keys(one.sampled(7)) == keys(two.sampled(7)) < keys(one.sampled(8)) and one.sampled(100).num_rows == 40


@pytest.mark.parametrize(
    ("lowest", "words"),
    [
        ("inf", "19 of 20 images or more are those of full, pixel by pixel: psnr"),
        (44.1, "19 of 20 images can't be told from those of full by eye: psnr"),
        (30.0, "19 of 20 images differ from those of full in details that are seen side by side: psnr"),
        (29.9, "19 of 20 images are like those of full, with details that visibly differ: psnr"),
        (3.0, "more than 1 of 20 images differs from that of full at first sight: psnr"),
        (None, "psnr not computed"),
    ],
)
def test_the_harm_is_said_in_words(lowest: object, words: str) -> None:
    psnr = {"median": lowest, "p05": lowest}
    document = {"metrics": {"psnr": psnr, "fid": {"value": 1.25}}, "rows": {"corpus": 200, "pairs": 198, "failed": 2}}
    said = compare._harm(document)
    assert said.startswith(words) and said.endswith("; fid 1.25 (198 pairs, 2 failed)")
    assert not compare._harm({"metrics": {"fid": {"value": 1.25}}, "rows": {"corpus": 9}}).startswith("19")


@pytest.mark.slow
def test_a_comparison_and_its_resumption(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hybridiff", "compare", *JOB, f"--data.prompts={prompts(tmp_path)}", "--rows=8"]
    command += [f"--output.url={tmp_path / 'corpus'}", "--parallel.schedule.tolerance=1.5", "--trainer.enable_progress_bar=false"]
    for required, code in (("psnr >= 200 and rows.matched == 8", 4), ("psnr > 5 and rows.matched == 8", 0)):
        done = subprocess.run([*command, f"--require={required}"], cwd=ROOT, capture_output=True, text=True, timeout=280)
        assert done.returncode == code, done.stderr
        lines = done.stdout.splitlines()
        assert [line.split()[0] for line in lines] == ["speed:", "harm:", "page:"] and "(8 pairs)" in lines[1]
        assert "times as fast as full" in lines[0] and "psnr" in lines[1]
    folder = tmp_path / "corpus-compare"
    assert not (tmp_path / "corpus").exists() and (folder / "evaluation" / "report.html").is_file()
    tables = [pq.read_table(folder / name / "metadata") for name in ("adaptive", "full")]
    assert tables[0]["seed"] == tables[1]["seed"] and sum(tables[0]["steps_skipped"].to_pylist()) > 0
    assert sum(tables[1]["steps_skipped"].to_pylist()) == 0
