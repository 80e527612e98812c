"""A directory that is no corpus: nothing in it is overwritten."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybridiff.corpus import Corpus, write_card
from hybridiff.corpus.layout import marker_name
from hybridiff.corpus.writable import check_free
from hybridiff.errors import UsageError
from tests.corpus.corpora import make_corpus, record

NAMES = ["README.md", "contact-sheet.png", "images/00000.tar", "metadata/00000.parquet", "commits/notes.txt", "stats/a.csv"]


@pytest.mark.parametrize("name", NAMES)
def test_what_has_a_name_that_a_corpus_needs_is_refused(url: str, name: str) -> None:
    corpus = Corpus(url)
    corpus.publish(name, b"mine")
    said = rf"holds {name.partition('/')[0]} and no corpus \(neither run\.json nor a marker in commits/\); allowed: a new"
    with pytest.raises(UsageError, match=said):
        check_free(corpus)


@pytest.mark.parametrize("name", [None, "notes.txt", "readme.txt", "imagesets/00000.tar", "logs/run.json", ".git/README.md"])
def test_other_names_are_nobodys_matter(url: str, name: str | None) -> None:
    corpus = Corpus(url)
    if name is not None:
        corpus.publish(name, b"mine")
    check_free(corpus)
    assert name is None or corpus.read(name) == b"mine"


def test_names_in_other_letter_cases_are_seen_where_they_are_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "readme.md").write_text("mine")
    check_free(Corpus(str(tmp_path)))

    def exists(path: str) -> bool:  # of a file system to which they are the same
        return os.path.basename(path).lower() in map(str.lower, os.listdir(os.path.dirname(path)))

    monkeypatch.setattr("os.path.lexists", exists)
    with pytest.raises(UsageError, match=r"holds README\.md and no corpus"):
        check_free(Corpus(str(tmp_path)))


def test_a_corpus_is_free_at_any_time_of_its_life(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus(url)
    for name in ("tables/0-0.parquet", "leases/00000.0.json"):
        corpus.publish(name, b"{}")
    check_free(corpus)
    corpus.start_run(record())
    check_free(corpus)
    write_card(make_corpus(url))
    listed: list[str] = []
    names = Corpus.names
    monkeypatch.setattr(Corpus, "names", lambda self, directory: listed.append(directory) or names(self, directory))
    check_free(corpus)
    assert listed == [""], "one listing, of the top level"
    corpus.fs.rm_file(corpus.path("run.json"))
    check_free(corpus)
    for index in range(3):
        corpus.fs.rm_file(corpus.path(marker_name(index)))
    with pytest.raises(UsageError, match=r"holds README\.md, .*contact-sheet\.png, images, metadata, stats and no corpus"):
        check_free(corpus)


def test_a_run_that_begins_meanwhile_is_seen(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = make_corpus(url)
    before: Iterator[list[str]] = iter([["images"]])
    monkeypatch.setattr(corpus, "names", lambda _: next(before))  # storage whose listings lag behind
    check_free(corpus)
    assert next(before, None) is None, "the listing that lags was looked at"
