"""``hybridiff select``: what it prints, and that every mistake is one line before anything is written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hybridiff import cli
from hybridiff.corpus import Corpus, verify
from hybridiff.prompts.rows import Sample
from tests.cli.refusals import refusal
from tests.corpus.corpora import record, write_shard
from tests.export.scored import scored_corpus

COLUMNS = "the columns are key, prompt,"


def test_it_prints_what_is_left_out_and_a_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scored_corpus(tmp_path / "runs")
    given = ["select", "runs", "-o", "new", "--where", "clip > 0.25 and not duplicate", "--split", "train:0.5,val:0.5"]
    assert cli.main([*given, "--dry_run"]) == 0
    assert "shards_written" in capsys.readouterr().out and not (tmp_path / "new").exists()
    assert cli.main([*given, "--refill", "refill.csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "left out: 3 (3 in all)  the image could not be generated"
    assert "left out: 1 (1 in all)  NOT duplicate" in lines
    summary = json.loads(lines[-1])
    assert summary["rows"] == 12 and summary["selected"] == sum(summary["splits"].values()) == 4
    assert summary["shards_left"] == 0 and sum(one["rows"] for one in summary["left_out"]) == 8
    assert all(verify(Corpus(str(tmp_path / "new" / name))).whole for name in ("train", "val"))
    assert (tmp_path / "refill.csv").is_file() and (tmp_path / "refill.yaml").is_file()


MISTAKES = {
    "runs": "-o/--output is not given",
    "runs -o new --where clop>1": f"--where: there is no column 'clop'; did you mean clip?; {COLUMNS}",
    "runs -o new --where clip>": "--where can't be read at '>'",
    "runs -o new --where=": "--where can't be read as it is empty",
    "runs -o new --where clip": "--where: clip is DOUBLE; allowed: what is true or false",
    "runs -o new --where clip>prompt": "--where can't be computed: ",
    "runs -o new --where nosuch(clip)": "--where can't be computed: Catalog Error",
    "runs -o new --where clip>1": "none of the 12 rows is left (the image could not be generated: 3; clip > 1: 8;",
    "runs -o new --where clip>0;select": "--where can't be read",
    "runs -o new --where random()<clip": "which differs from run to run",
    "runs -o new --where avg(clip)>0": "which is about many rows",
    "runs -o new --where clip>(select(1))": "holds a subquery",
    "runs -o new --where true/**/limit/**/1": "which is more than a condition",
    "runs -o new --where read_text('/etc/hostname')=''": "--where can't be computed: ",
    "runs -o new --split a:0.5": "--split is 'a:0.5', whose shares sum to 0.5; allowed: names and shares that sum to 1",
    "runs -o new --split a:0.5,a:0.5": "allowed: each name once",
    "runs -o new --split a/b:1": "is no name and share",
    "runs -o new --split a": "is no name and share",
    "runs -o new --format gif": "--format is 'gif'; allowed: png, jpg, webp",
    "runs -o new --format png --quality 9": "allowed: none with --format png",
    "runs -o new --format jpg --quality 101": "--quality is 101; allowed: 1 to 100",
    "runs -o new --quality 9": "allowed: none without --format",
    "runs -o new --shard_size 0": "--shard_size is '0'; allowed: a whole number from 1 on",
    "runs -o new --columns nosuch": f"--columns: there is no column 'nosuch'; {COLUMNS}",
    "runs -o new --caption {nosuch}": f"--caption: there is no column 'nosuch'; {COLUMNS}",
    "runs -o new --caption {prompt": "--caption is '{prompt'",
    "runs -o new --caption {clip!r}": "--caption is '{clip!r}'",
    "runs -o new --caption {clip:zz}": "--caption is '{clip:zz}' ('zz' does not fit clip",
    "runs -o new --caption {prompt:>2000}": "--caption is '{prompt:>2000}' (a format of more than 1000 characters)",
    "runs -o new --refill refill.txt": "--refill is 'refill.txt'; allowed: a name that ends with .parquet or .csv",
    "runs -o new --scores nowhere": "--scores is 'nowhere', which holds no *.parquet",
    "runs -o runs": "--output is runs, which is in the source itself",
    "runs -o runs/part": "which is in the source itself",
    "runs -o foreign": "--output is foreign, which holds notes.txt",
    "runs -o other": "--output is other, which holds",
    "nowhere -o new": "nowhere holds no corpus",
    "part -o new": "part is not whole: 2 of its 3 shards are missing",
    "torn -o new": "torn is not whole: images/00001.tar is missing; allowed: a corpus that hybridiff verify finds whole",
    "nosuch://runs -o new": "CORPUS is nosuch://runs: no file system",
    "runs -o nosuch://new": "--output is nosuch://new: no file system",
    "s3://user:secret@bucket/x -o new": "CORPUS is a url with credentials in it",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scored corpus, a part of one, another run's, and somebody's notes."""
    made = tmp_path_factory.mktemp("select")
    for name in ("runs", "torn"):
        scored_corpus(made / name)
    (made / "torn" / "images" / "00001.tar").unlink()
    for name in ("part", "other"):
        corpus = Corpus(str(made / name))
        corpus.start_run(record())
        write_shard(corpus, 1)
    (made / "foreign").mkdir()
    (made / "foreign" / "notes.txt").write_text("mine")
    return made


@pytest.mark.parametrize("given", MISTAKES)
def test_mistakes_are_one_line(
    given: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert MISTAKES[given] in refusal(["select", *given.split()], folder, capsys)


@pytest.mark.slow
def test_a_refill_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hybridiff.cli.config import parse
    from hybridiff.prompts.plan import make_plan

    monkeypatch.chdir(tmp_path)
    few = ["--sampling.steps=1", "--parallel.schedule=full", "--trainer.devices=1", "--parallel.group_size=1"]
    generate("--config=demo", *few, "--output.url=runs", "--sampling.images_per_prompt=2")
    given = ["select", "runs", "-o", "new", "--where", "seed % 2 = 0", "--refill", "refill.parquet"]
    assert cli.main(given) == 0
    job = parse(["--config=refill.yaml", "--output.url=again"]).config
    plan = make_plan(job.data, job.sampling, 100)
    samples: list[Sample] = [sample for index in range(plan.shards) for sample in plan.shard(index).samples]
    left = [row for row in _rows(tmp_path / "runs") if row["seed"] % 2]
    assert [sample.columns["refill_of"] for sample in samples] == [row["key"] for row in left]
    assert [sample.prompt for sample in samples] == [row["prompt"] for row in left] and job.sampling.steps == 1
    generate("--config=refill.yaml", "--output.url=again")
    assert verify(Corpus("again")).ok == len(left)


def generate(*given: str) -> None:
    subprocess.run([sys.executable, "-m", "hybridiff", "generate", *given], check=True, timeout=200)


def _rows(path: Path) -> list[dict[str, object]]:
    from tests.export.scored import rows

    return rows(Corpus(str(path)))
