"""What is repaired is made again by the next run; nothing is repaired beside a run."""

from pathlib import Path
from typing import Any

import pytest

from hybridiff.cli import verify as verify_job
from hybridiff.corpus import repair, verify
from hybridiff.corpus.claims import Claims
from hybridiff.corpus.layout import marker_name, metadata_name, tar_name
from hybridiff.corpus.lock import RunLock
from hybridiff.errors import UsageError
from tests.corpus.corpora import files, make_corpus, write_shard
from tests.storage.faults import FAULTS, put


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", [tar_name(1), metadata_name(1), marker_name(1)])
def test_what_is_repaired_is_made_again_by_the_next_run(url: str, name: str, fault: str) -> None:
    corpus = make_corpus(url)
    whole = {name: data for name, data in files(corpus).items() if not name.startswith("stats/")}
    put(corpus, name, FAULTS[fault](corpus.read(name)))
    repair(corpus, verify(corpus))
    assert corpus.committed() == {0, 2}, "only the damaged shard is to be made again"
    write_shard(corpus, 1)
    assert {name: data for name, data in files(corpus).items() if not name.startswith("stats/")} == whole
    assert verify(corpus).whole and repair(corpus, verify(corpus)) == []


def test_a_marker_that_a_run_has_renewed_since_the_check_stays(url: str) -> None:
    corpus = make_corpus(url)
    put(corpus, tar_name(1), b"garbage")
    put(corpus, tar_name(2), b"garbage")
    report = verify(corpus)
    corpus.publish(marker_name(1), corpus.read(marker_name(1)) + b"\n")
    assert repair(corpus, report) == [marker_name(2)] and corpus.committed() == {0, 1}


def test_a_marker_that_storage_does_not_remove_is_told_and_the_others_are_removed(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus(url)
    put(corpus, tar_name(1), b"garbage")
    put(corpus, tar_name(2), b"garbage")
    report = verify(corpus)
    remove = type(corpus.fs).rm_file

    def refuse(self: Any, path: str) -> None:
        if path.endswith(marker_name(1)):
            raise PermissionError("not yours")
        remove(self, path)

    monkeypatch.setattr(type(corpus.fs), "rm_file", refuse)
    assert repair(corpus, report) == [marker_name(2)] and corpus.committed() == {0, 1}
    assert report.problems[-1] == "commits/00001.json: can't be removed (PermissionError: not yours)"


def test_what_was_found_is_told_where_a_run_has_begun_before_the_repair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> list[str]:
        raise UsageError("output.url is being written")

    corpus = make_corpus(str(tmp_path))
    put(corpus, tar_name(1), b"garbage")
    monkeypatch.setattr("hybridiff.corpus.repair", refuse)
    assert verify_job.main([corpus.root, "--repair", "--processes=1"]) == 2
    printed = capsys.readouterr()
    assert "\nproblem: images/00001.tar: " in printed.out and printed.err == "verify: error: output.url is being written\n"


@pytest.mark.parametrize("part", [(0, 1), (1, 3)])
def test_nothing_is_repaired_next_to_a_run(url: str, part: tuple[int, int]) -> None:
    corpus = make_corpus(url)
    put(corpus, tar_name(1), b"garbage")
    report = verify(corpus)
    with RunLock(corpus, part=part):
        with pytest.raises(UsageError, match=r"is being written by process .* until it was silent for 300 s$"):
            repair(corpus, report)
        assert corpus.committed() == {0, 1, 2}
    assert repair(corpus, report) == [marker_name(1)]


def test_nothing_is_repaired_next_to_a_run_with_claims(url: str) -> None:
    corpus = make_corpus(url)
    put(corpus, tar_name(1), b"garbage")
    report = verify(corpus)
    corpus.fs.rm_file(corpus.path(marker_name(2)))
    claims = Claims(corpus, 3, 60.0, "far-1-ab")
    assert claims.draw() == 2
    with pytest.raises(UsageError, match="is being written by far-1-ab, with claims; allowed: to repair what nobody writes"):
        repair(corpus, report)
    assert corpus.committed() == {0, 1}
    claims.release_all()
    assert repair(corpus, report) == [marker_name(1)]
