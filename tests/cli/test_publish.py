"""``hybridiff publish``: what it prints, and that every mistake is one line."""

import json
from pathlib import Path

import pytest

from hybridiff import cli
from hybridiff.corpus import Corpus, verify
from tests.cli.refusals import refusal
from tests.corpus.corpora import make_corpus, record, write_shard

MISTAKES = {
    "runs": "URL is not given",
    "runs hf://somebody/shapes": "URL is hf://somebody/shapes; allowed: hf://datasets/OWNER/NAME",
    "runs hf://datasets/shapes": "allowed: hf://datasets/OWNER/NAME",
    "runs hf://datasets/a/b": "no token for the Hub was found; allowed: the variable HF_TOKEN",
    "nowhere new": "nowhere holds no corpus",
    "part new": "part is not whole: 2 of 3 shards are missing; allowed: a whole corpus, or --partial, which publishes the 1",
    "runs runs": "URL is runs, which is the corpus itself",
    "runs runs/new": "URL is runs/new, which is the corpus itself, in it or above it",
    "runs .": "URL is ., which is the corpus itself, in it or above it",
    "runs part": "URL is part, whose run.json is of another corpus",
    "runs foreign": "URL is foreign, which holds notes.txt",
    "nosuch://runs new": "CORPUS is nosuch://runs: no file system",
    "runs nosuch://new": "URL is nosuch://new: no file system",
    "runs new --private": "--private is given with new; allowed: with hf://datasets/OWNER/NAME",
    "runs new --license=": "--license is empty",
    "runs new --license=token=hunter2-Zx9": "--license is 'token=***', which holds credentials; allowed: the name of a licence",
    "runs new --nosuch": "there is no option --nosuch; allowed: --partial, --license, --private",
    "torn new": "torn is not whole: images/00001.tar is missing; allowed: a corpus that hybridiff verify finds whole",
    "runs /proc/new": "URL is /proc/new: it is not writable",
    "empty new": "empty has no committed shard",
    "runs s3://user:secret@bucket/x": "URL is a url with credentials in it",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, a part of another one, one without shards, and somebody's notes."""
    made = tmp_path_factory.mktemp("publish")
    for name in ("runs", "torn"):
        make_corpus(str(made / name))
    (made / "torn" / "images" / "00001.tar").unlink()
    other = record(configuration=record().configuration | {"model": {"path": "other"}})
    for name in ("part", "empty"):
        Corpus(str(made / name)).start_run(other)
    part = Corpus(str(made / "part"))
    part.start_run(other)
    write_shard(part, 1)
    (made / "foreign").mkdir()
    (made / "foreign" / "notes.txt").write_text("mine")
    return made


@pytest.mark.parametrize("given", MISTAKES)
def test_mistakes_are_one_line(
    given: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "none"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.chdir(folder)
    assert MISTAKES[given] in refusal(["publish", *given.split()], folder, capsys)


def test_a_part_is_published_and_said_to_be_one(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    target = str(tmp_path / "new")
    assert cli.main(["publish", "part", target, "--partial", "--license", "openrail++"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["shards"], summary["missing"], summary["license"], summary["skipped"]) == (1, 2, "openrail++", 0)
    card = (tmp_path / "new" / "README.md").read_text()
    assert "1 of its 3 shards" in card and "license: openrail++" in card
    assert verify(Corpus(target)).missing == 2 and verify(Corpus(target)).corrupt == 0
