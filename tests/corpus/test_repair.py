"""The next run regenerates repaired shards; a shard that another process writes is not repaired."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from hybridiff import cli
from hybridiff.corpus import repair, verify
from hybridiff.corpus.layout import LEASES, lease_of, marker_name, metadata_name, tar_name
from hybridiff.storage.lease import Leases
from hybridiff.storage.owner import Owner
from tests.corpus.corpora import files, make_corpus, write_shard
from tests.storage.faults import FAULTS, put


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", [tar_name(1), metadata_name(1), marker_name(1)])
def test_the_next_run_regenerates_repaired_shards(url: str, name: str, fault: str) -> None:
    corpus = make_corpus(url)
    whole = {name: data for name, data in files(corpus).items() if not name.startswith("stats/")}
    put(corpus, name, FAULTS[fault](corpus.read(name)))
    repair(corpus, verify(corpus))
    assert corpus.committed() == {0, 2}, "only the damaged shard is to be regenerated"
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


def test_a_marker_that_cannot_be_removed_is_reported_and_the_others_are_removed(
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


def test_a_shard_that_a_live_process_writes_is_left_out_and_said(url: str, tmp_path: Path) -> None:
    corpus = make_corpus(url)
    put(corpus, tar_name(1), b"garbage")
    put(corpus, tar_name(2), b"garbage")
    report = verify(corpus)
    other = Leases(corpus, LEASES, 60.0, Owner.here("job-7"))
    assert other.acquire(lease_of(1))
    assert repair(corpus, report) == [marker_name(2)] and corpus.committed() == {0, 1}
    held = report.problems[-1]
    assert held.startswith("commits/00001.json: not removed, as its shard is being written by process ")
    assert f"of job job-7 on {other.owner.host}, since " in held
    other.release(lease_of(1))
    assert repair(corpus, report) == [marker_name(1)] and corpus.names("leases") == []


@pytest.mark.parametrize("held", [False, True])
def test_the_command_says_what_it_repaired_and_what_not(tmp_path: Path, capsys: pytest.CaptureFixture[str], held: bool) -> None:
    corpus = make_corpus(str(tmp_path))
    put(corpus, tar_name(1), b"garbage")
    other = Leases(corpus, LEASES, 60.0)
    assert not held or other.acquire(lease_of(1))
    assert cli.main(["verify", corpus.root, "--repair", "--processes=1"]) == 1
    printed = capsys.readouterr().out
    assert ("repair: commits/00001.json removed" in printed) != held
    assert ("problem: commits/00001.json: not removed, as its shard is being written by process" in printed) == held


def test_nothing_is_removed_through_a_link_out_of_the_corpus(tmp_path: Path) -> None:
    other = make_corpus(str(tmp_path / "other"))
    corpus = make_corpus(str(tmp_path / "corpus"))
    shutil.rmtree(tmp_path / "corpus" / "commits")
    (tmp_path / "corpus" / "commits").symlink_to(tmp_path / "other" / "commits")
    put(corpus, tar_name(1), b"garbage")
    report = verify(corpus)
    assert list(report.damaged) == [1] and repair(corpus, report) == []
    assert "commits is a link out of" in report.problems[-1] and other.committed() == {0, 1, 2} and verify(other).whole


def test_storage_without_leases_is_repaired_all_the_same(tmp_path: Path) -> None:
    corpus = make_corpus(str(tmp_path))
    put(corpus, tar_name(1), b"garbage")
    report = verify(corpus)
    corpus.__class__ = type("Elsewhere", (type(corpus),), {"creates_if_absent": False})
    assert repair(corpus, report) == [marker_name(1)] and corpus.names("leases") == []
