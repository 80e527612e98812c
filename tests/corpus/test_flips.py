"""Single flipped bits of the small files: each is found and named, and what they say falsely is not acted upon."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybridiff.corpus import Corpus, ShardWriter, repair, verify
from hybridiff.corpus.layout import marker_name
from hybridiff.corpus.record import fingerprint
from hybridiff.errors import UsageError
from tests.corpus.corpora import PNG, RUN_VALUES, USER_SCHEMA, files, make_corpus, record, result

EACH = pytest.mark.parametrize("stride", [9, pytest.param(1, marks=pytest.mark.slow)])  # 9: a bit of each byte, another each time


def flips(data: bytes, stride: int) -> Iterator[bytes]:
    for flipped in range(0, 8 * len(data), stride):
        place, bit = divmod(flipped, 8)
        yield data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def flip_fingerprint(corpus: Corpus) -> str:
    """Flips a bit of run.json's fingerprint, and returns it."""
    document = json.loads(corpus.read("run.json"))
    flipped = f"{int(document['fingerprint'], 16) ^ 1:064x}"
    corpus.publish("run.json", json.dumps(document | {"fingerprint": flipped}).encode())
    return flipped


@EACH
def test_every_flipped_bit_of_a_marker_is_named(tmp_path: Path, stride: int) -> None:
    corpus, path = Corpus(str(tmp_path)), tmp_path / marker_name(0)
    corpus.start_run(record(plan={"rows": 1, "shards": 1, "content": "0"}))
    writer = ShardWriter(corpus, 0, RUN_VALUES, USER_SCHEMA, PNG)
    writer.write(result(0, failed=True))
    writer.commit({})
    whole = path.read_bytes()
    for flipped in flips(whole, stride):
        path.write_bytes(flipped)
        assert list(verify(corpus).damaged) == [0], flipped
    path.write_bytes(whole)
    assert verify(corpus).whole


@EACH
def test_every_flipped_bit_of_the_run_record_is_found(tmp_path: Path, stride: int) -> None:
    corpus, path = make_corpus(str(tmp_path)), tmp_path / "run.json"
    for flipped in flips(path.read_bytes(), stride):
        path.write_bytes(flipped)
        with pytest.raises(UsageError, match=r": run\.json is (damaged|not JSON|no run record)"):
            corpus.read_run()


def test_a_damaged_run_record_costs_no_shard_and_is_written_anew(url: str) -> None:
    corpus = make_corpus(url)
    before = files(corpus)
    flip_fingerprint(corpus)
    report = verify(corpus)
    said = "run.json is damaged: its SHA-256 is not that of its contents; remove it, then the command that generated the corpus"
    assert len(report.problems) == report.corrupt == 1 and said in report.problems[0] and not report.whole
    assert repair(corpus, report) == [] and corpus.committed() == {0, 1, 2}
    with pytest.raises(UsageError, match=said):
        Corpus(url).start_run(record())
    corpus.fs.rm_file(corpus.path("run.json"))
    Corpus(url).start_run(record(configuration=json.loads(before["run.json"])["configuration"]))
    assert files(corpus) == before


def test_a_run_record_without_a_checksum_is_valid_if_it_fits(tmp_path: Path) -> None:
    corpus = make_corpus(str(tmp_path))
    document = json.loads(corpus.read("run.json"))
    del document["sha256"]
    corpus.publish("run.json", json.dumps(document).encode())
    corpus.start_run(record())
    assert verify(corpus).whole and corpus.fingerprint == document["fingerprint"] == fingerprint(document, record().excluded)
    flipped = flip_fingerprint(corpus)
    report = verify(corpus)
    assert report.problems == [f"run.json: of another run ({flipped}) than all markers ({document['fingerprint']})"]
    assert (report.corrupt, report.damaged, repair(corpus, report)) == (1, {}, [])
    with pytest.raises(UsageError, match=r"run\.json is damaged: its fingerprint is not that of its contents; remove it"):
        corpus.start_run(record())
