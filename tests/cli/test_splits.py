"""The directory of a selection with splits: ``verify`` and ``status`` look at each; what needs one corpus names them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hybridiff import cli
from hybridiff.corpus.splits import SPLITS, write_splits
from hybridiff.storage.folder import Folder
from tests.corpus.corpora import PER_SHARD, SHARDS, make_corpus

ROWS = SHARDS * PER_SHARD


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("splits")
    for name in ("train", "val"):
        make_corpus(str(folder / name))
    write_splits(Folder(str(folder)), ["train", "val"])
    return folder


@pytest.fixture
def splits(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "new")
    return tmp_path / "new"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str], dict[str, Any]]:
    """Exit code, lines and the JSON of the last of them."""
    code = cli.main(list(arguments))
    *lines, last = capsys.readouterr().out.splitlines()
    return code, lines, json.loads(last)


def test_verify_checks_every_split_and_sums_their_counts(splits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, counts = run(capsys, "verify", f"{splits}/", "--processes", "1")
    assert code == 0 and [line.partition(":")[0] for line in lines if " whole" in line] == [
        f"{splits}/{name} is whole" for name in ("train", "val")
    ]
    assert counts["rows"] == 2 * ROWS and counts["splits"]["val"]["shards"] == SHARDS


def test_verify_names_the_split_that_is_damaged_and_repairs_it(splits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (splits / "val" / "metadata" / "00001.parquet").write_bytes(b"")
    code, lines, counts = run(capsys, "verify", str(splits), "--repair", "--processes", "1")
    assert code == 1 and counts["corrupt"] == counts["splits"]["val"]["corrupt"] == 1
    assert next(line for line in lines if line.startswith("problem: ")).startswith("problem: val: metadata/00001.parquet: ")
    assert any(line.startswith("repair: val: commits/00001.json removed") for line in lines)
    assert run(capsys, "verify", str(splits), "--processes", "1")[2]["splits"]["val"]["missing"] == 1


def test_repair_follows_no_split_that_is_a_link_out_of_the_directory(
    splits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = (splits / "val").rename(tmp_path / "outside")
    (splits / "val").symlink_to(outside)
    (outside / "metadata" / "00001.parquet").write_bytes(b"")
    assert cli.main(["verify", str(splits), "--repair"]) == 1
    assert f"{splits}/val is a link out of {splits}" in capsys.readouterr().err
    assert len(list((outside / "commits").iterdir())) == SHARDS


def test_status_shows_every_split(splits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (splits / "val" / "commits" / "00001.json").unlink()
    code, lines, state = run(capsys, "status", str(splits))
    assert code == 0 and f"corpus:   {splits}/train" in lines and f"corpus:   {splits}/val" in lines
    assert state["complete"] is False and [state["splits"][name]["missing"] for name in ("train", "val")] == [0, 1]


@pytest.mark.parametrize("command", ["status {} --watch", "select {} -o new", "evaluate {} --scores nsfw"])
def test_what_needs_one_corpus_names_the_splits(splits: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command.format(splits).split()) == 2
    said = f"{splits} holds splits; allowed: one of them, {splits}/train or {splits}/val"
    assert capsys.readouterr().err.splitlines()[-1].endswith(said)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"splits": []}', b'{"splits": "train"}', b'{"splits": ["../val"]}'])
@pytest.mark.parametrize("command", ["verify", "status"])
def test_a_damaged_list_of_splits_is_a_mistake(
    splits: Path, content: bytes, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (splits / SPLITS).write_bytes(content)
    assert cli.main([command, str(splits)]) == 2
    assert f"{SPLITS} in {splits} is damaged" in capsys.readouterr().err


def test_a_file_of_this_name_in_a_corpus_is_nothing_to_it(splits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (splits / "train" / SPLITS).write_text("mine")
    assert run(capsys, "verify", f"{splits}/train", "--processes", "1")[2]["shards"] == SHARDS
