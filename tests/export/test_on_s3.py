"""Selecting and publishing on a real S3 server that fails in between."""

from pathlib import Path

from hybridiff.corpus import Corpus, verify
from hybridiff.export.copy_corpus import publish_to_folder
from hybridiff.export.licence import given_licence
from hybridiff.export.publication import read_publishable
from tests.export.scored import scored_corpus
from tests.export.test_selecting import run
from tests.services.proxy import FaultyProxy


def test_a_selection_of_a_corpus_there_is_written_there_and_published(proxy: FaultyProxy, corpus: Corpus, tmp_path: Path) -> None:
    local = scored_corpus(tmp_path / "source")
    source, licence = f"{corpus.url}/source", given_licence("mit")
    proxy.faults = [503, None, 500, "cut"]
    assert publish_to_folder(read_publishable(local.url), source, licence).skipped == 0
    assert publish_to_folder(read_publishable(local.url), source, licence).files == 0
    assert verify(Corpus(source)).whole
    new = Corpus(f"{corpus.url}/new")
    assert run(Corpus(source), new.url, where="clip > 0.25", shard_size=2).written == 3
    assert run(Corpus(source), new.url, where="clip > 0.25", shard_size=2).written == 0
    assert verify(new).whole
    publish_to_folder(read_publishable(new.url), str(tmp_path / "back"), licence)
    assert verify(Corpus(str(tmp_path / "back"))).whole
