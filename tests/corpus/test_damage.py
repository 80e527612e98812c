"""Damage found at the end of a run, or by --only, is one line that names the file and says what to do."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybridiff.corpus import Corpus, repair, verify, write_card
from hybridiff.corpus.compare import compare, find_row
from hybridiff.corpus.layout import marker_name, metadata_name, tar_name
from hybridiff.corpus.reader import ShardDamaged
from hybridiff.errors import StorageError
from tests.corpus.corpora import PNG, make_corpus, result, write_shard

FAULTS: dict[str, Callable[[bytes], bytes]] = {
    "garbage": lambda data: b"garbage" * 200,
    "truncated": lambda data: data[: len(data) // 2],
    "emptied": lambda data: b"",
    "head": lambda data: data[:300],
    "zeros": lambda data: bytes(len(data)),
    "foot": lambda data: data[: len(data) * 3 // 4] + b"\1" * (len(data) // 4 - 8) + data[-8:],
}
UNSEEN = {  # by the card: the tar ends early where a header would be, or lacks what is not shown
    (tar_name(0), "truncated"),
    (tar_name(0), "foot"),
    (marker_name(1), "deleted"),
}


def spoil(corpus: Corpus, name: str, fault: str) -> None:
    if fault == "deleted":
        corpus.fs.rm_file(corpus.path(name))
    else:
        corpus.publish(name, FAULTS[fault](corpus.read(name)))


def check_line(corpus: Corpus, name: str, damage: "pytest.ExceptionInfo[ShardDamaged]") -> None:
    text = str(damage.value)
    assert text.startswith(f"{name} in {corpus.url} is damaged (") and "\n" not in text and len(text) < 1000
    assert text.endswith("; run hybridiff verify --repair, then hybridiff generate without --retry_failed")


@pytest.mark.parametrize("fault", [*FAULTS, "deleted"])
@pytest.mark.parametrize("name", [tar_name(0), metadata_name(0), marker_name(1)])
def test_a_corpus_is_not_finished_over_damage_and_can_be_after_a_repair(url: str, name: str, fault: str) -> None:
    corpus = make_corpus(url)
    spoil(corpus, name, fault)
    if (name, fault) in UNSEEN:
        write_card(corpus)
        assert not verify(corpus).whole
        return
    with pytest.raises(ShardDamaged) as damage:
        write_card(corpus)
    check_line(corpus, name, damage)
    assert not {"README.md", "contact-sheet.png"} <= set(corpus.names(""))
    assert len(repair(corpus, verify(corpus))) == 1
    write_shard(corpus, int(name.partition("/")[2].partition(".")[0]))
    assert write_card(corpus) == {"rows": 12, "ok": 9, "failed": 3} and verify(corpus).whole


@pytest.mark.parametrize("ending", ["png", "txt"])
def test_invalid_images_and_prompts_are_reported(url: str, ending: str) -> None:
    corpus, buffer = make_corpus(url), io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(corpus.read(tar_name(0)))) as old, tarfile.open(fileobj=buffer, mode="w") as new:
        for member in old:
            data = old.extractfile(member).read()  # type: ignore[union-attr]
            data = data[:60] + b"\xff" + data[61:-30] if ending == "png" and member.name.endswith("png") else data
            member.size = len(data)
            if not member.name.endswith("txt") or ending != "txt":
                new.addfile(member, io.BytesIO(data))
    corpus.publish(tar_name(0), buffer.getvalue())
    with pytest.raises(ShardDamaged) as damage:
        write_card(corpus)
    check_line(corpus, tar_name(0), damage)


class HttpError(Exception):
    """What a storage client raises that has types of its own."""


@pytest.mark.parametrize("error", [OSError, HttpError])
def test_storage_that_fails_is_not_damage(url: str, monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    corpus = make_corpus(url)
    open_file, refused = type(corpus.fs).open, [0]

    def refuse(self: Any, path: str, mode: str = "rb", **options: Any) -> Any:
        if path.endswith(tar_name(0)) and not refused[0]:  # once, as a busy server does
            refused[0] = 1
            raise error("no answer")
        return open_file(self, path, mode, **options)

    monkeypatch.setattr(type(corpus.fs), "open", refuse)
    with pytest.raises(StorageError) as failed:
        write_card(corpus)
    assert str(failed.value) == f"{tar_name(0)} in {corpus.url}: {error.__name__}: no answer"
    assert not isinstance(failed.value, ShardDamaged)


def test_an_output_that_was_removed_is_not_damage(tmp_path: Path) -> None:
    corpus = make_corpus(str(tmp_path / "corpus"))
    corpus.fs.rm_file(corpus.path(tar_name(0)))
    run = corpus.read("run.json")
    corpus.fs.rm_file(corpus.path("run.json"))
    with pytest.raises(StorageError, match=r"run\.json in .* is missing"):
        write_card(corpus)
    corpus.read_run = lambda: {"plan": {"shards": 3}, "configuration": {}, "run": run}  # type: ignore[method-assign]
    with pytest.raises(FileNotFoundError, match="was removed during the run"):
        write_card(corpus)


@pytest.mark.parametrize("fault", [*FAULTS, "deleted"])
def test_a_row_is_found_beside_damaged_shards(url: str, fault: str) -> None:
    corpus = make_corpus(url)
    spoil(corpus, metadata_name(0), fault)
    assert find_row(corpus, result(7).sample.key)[0] == 1
    for key in (result(1).sample.key, "nowhere"):
        with pytest.raises(ShardDamaged) as damage:
            find_row(corpus, key)
        check_line(corpus, metadata_name(0), damage)


@pytest.mark.parametrize("fault", ["garbage", "emptied", "head", "zeros", "deleted"])
def test_a_row_whose_image_is_gone_cannot_be_compared(url: str, fault: str) -> None:
    corpus = make_corpus(url)
    shard, row = find_row(corpus, result(7).sample.key)
    spoil(corpus, tar_name(1), fault)
    assert compare(corpus, shard, row, result(7), PNG).equal, "by its checksum alone"
    with pytest.raises(ShardDamaged) as damage:
        compare(corpus, shard, row, result(5), PNG)
    check_line(corpus, tar_name(1), damage)
