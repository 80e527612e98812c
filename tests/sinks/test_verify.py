"""Every fault is found; a whole corpus has none; garbage never ends in a traceback."""

import io
import json
import random
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybridiff.config import UsageError
from hybridiff.sinks import Corpus, Report, ShardWriter, finish, repair, verify
from hybridiff.sinks.card import finished
from hybridiff.sinks.claims import Claims
from hybridiff.sinks.lock import RunLock
from hybridiff.sinks.names import marker_name, metadata_name, tar_name
from hybridiff.sinks.publish import publish_bytes
from hybridiff.sinks.record import sealed
from jobs import verify as verify_job
from tests.sinks.corpora import SETTINGS, USER_SCHEMA, files, make_corpus, record, result, write_shard

Fault = Callable[[bytes], bytes | None]
FAULTS: dict[str, Fault] = {
    "flipped": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :],
    "truncated": lambda data: data[: len(data) // 2],
    "emptied": lambda data: b"",
    "lengthened": lambda data: data + b"\0" * 512 + b"x",
    "garbage": lambda data: random.Random(0).randbytes(len(data)),
    "deleted": lambda data: None,
}


def put(corpus: Corpus, name: str, data: bytes | None) -> None:
    if data is None:
        corpus.fs.rm_file(corpus.path(name))
    else:
        corpus.publish(name, data)


def seal(corpus: Corpus, index: int) -> None:
    """Makes a shard's marker fit its files, whatever they hold."""
    marker = corpus.read_marker(index)
    for name in marker["files"]:
        done = publish_bytes(corpus.fs, corpus.path(name), corpus.read(name))
        marker["files"][name] = {"bytes": done.bytes, "sha256": done.sha256}
    corpus.publish(marker_name(index), json.dumps(marker).encode())


@pytest.mark.parametrize("image_format", ["png", "jpg", "webp"])
def test_a_whole_corpus(url: str, image_format: str) -> None:
    corpus = make_corpus(url, image_format)
    finish(corpus)
    report = verify(corpus)
    assert report == Report(shards=3, rows=12, ok=9, failed=3)
    assert report.whole


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", [tar_name(1), metadata_name(1), marker_name(1)])
def test_damage_to_any_file_is_found_and_named(url: str, name: str, fault: str) -> None:
    corpus = make_corpus(url)
    put(corpus, name, FAULTS[fault](corpus.read(name)))
    report = verify(corpus)
    if (name, fault) == (marker_name(1), "deleted"):
        assert (report.shards, report.missing, report.corrupt) == (2, 1, 0)
        assert len(report.notes) == 2, "the shard's files are there without a marker"
    else:
        assert (report.shards, report.missing, report.corrupt) == (3, 0, 1), report.problems
        assert list(report.damaged) == [1]
    assert report.problems and all(problem.startswith(name) for problem in report.problems)
    assert not report.whole


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


def test_what_could_not_be_read_is_not_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = make_corpus(str(tmp_path))
    open_file = type(corpus.fs).open

    def refuse(self: Any, path: str, mode: str = "rb", **options: Any) -> Any:
        if path.endswith(tar_name(1)):
            raise TimeoutError("no answer")
        return open_file(self, path, mode, **options)

    monkeypatch.setattr(type(corpus.fs), "open", refuse)
    report = verify(corpus)
    assert report.problems == ["images/00001.tar: TimeoutError: no answer"] and not report.whole
    assert (report.corrupt, report.unreadable, report.missing, report.damaged) == (0, 1, 0, {})
    assert repair(corpus, report) == [] and corpus.committed() == {0, 1, 2}


class ClientError(Exception):
    """What a storage client raises that has types of its own."""


class InvalidAnswer(ValueError):
    """Likewise, of a type that readers of damaged files raise too."""


@pytest.mark.parametrize("error", [ConnectionError, ClientError, InvalidAnswer])
@pytest.mark.parametrize(
    ("name", "read"),
    [(marker_name(1), 1), *((name, read) for name in (tar_name(1), metadata_name(1)) for read in (1, 2, 3, 4))],
)
def test_storage_that_fails_once_in_the_middle_of_a_file_is_no_damage(
    tmp_path: Path, name: str, read: int, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus(str(tmp_path))
    open_file, reads = type(corpus.fs).open, [0]

    class Failing:
        def __init__(self, handle: Any) -> None:
            self.handle = handle

        def __getattr__(self, attribute: str) -> Any:
            return getattr(self.handle, attribute)

        def __enter__(self) -> "Failing":
            return self

        def __exit__(self, *_: object) -> None:
            self.handle.close()

        def read(self, size: int = -1) -> bytes:
            reads[0] += 1
            if reads[0] == read:
                raise error("reset")
            data: bytes = self.handle.read(size)
            return data

    def opened(self: Any, path: str, mode: str = "rb", **options: Any) -> Any:
        handle = open_file(self, path, mode, **options)
        return Failing(handle) if path.endswith(name) else handle

    monkeypatch.setattr(type(corpus.fs), "open", opened)
    report = verify(corpus)
    assert reads[0] >= read and (report.corrupt, report.unreadable, report.damaged) == (0, 1, {}), report.problems
    assert repair(corpus, report) == [] and corpus.committed() == {0, 1, 2}


@pytest.mark.parametrize("error", [ConnectionError, ClientError])
@pytest.mark.parametrize("time", [1, 2])
def test_storage_that_does_not_open_the_rows_is_no_damage(
    tmp_path: Path, time: int, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus(str(tmp_path))
    open_file, times = type(corpus.fs).open, [0]

    def opened(self: Any, path: str, mode: str = "rb", **options: Any) -> Any:
        times[0] += path.endswith(metadata_name(1))
        if path.endswith(metadata_name(1)) and times[0] == time:
            raise error("no answer")
        return open_file(self, path, mode, **options)

    monkeypatch.setattr(type(corpus.fs), "open", opened)
    report = verify(corpus)
    assert times[0] >= time and (report.corrupt, report.unreadable, report.damaged) == (0, 1, {}), report.problems


def test_storage_that_fails_while_keys_are_compared_costs_no_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = make_corpus(str(tmp_path))
    repeat_keys(corpus)
    put(corpus, tar_name(2), b"garbage")
    open_file, times = type(corpus.fs).open, [0]

    def opened(self: Any, path: str, mode: str = "rb", **options: Any) -> Any:
        times[0] += path.endswith(metadata_name(0))
        if path.endswith(metadata_name(0)) and times[0] == 3:  # after its checksum and its rows
            raise ClientError("no answer")
        return open_file(self, path, mode, **options)

    monkeypatch.setattr(type(corpus.fs), "open", opened)
    report = verify(corpus)
    assert report.problems[0] == "metadata/00000.parquet: ClientError: no answer"
    assert (report.unreadable, report.corrupt, list(report.damaged)) == (1, 1, [2])


@pytest.mark.parametrize("fault", ["garbage", "pages"])
def test_rows_that_fit_their_marker_and_are_none_are_damage(url: str, fault: str) -> None:
    corpus = make_corpus(url)
    rows = corpus.read(metadata_name(1))
    garbage = random.Random(0).randbytes(len(rows))
    put(
        corpus,
        metadata_name(1),
        garbage if fault == "garbage" else rows[:4] + garbage[: len(rows) // 4] + rows[4 + len(rows) // 4 :],
    )
    seal(corpus, 1)
    report = verify(corpus)
    assert (report.corrupt, report.unreadable, list(report.damaged)) == (1, 0, [1]), report.problems


def test_a_shard_of_another_run_is_found_and_made_again(url: str) -> None:
    corpus = make_corpus(url)
    marker = corpus.read_marker(1)
    corpus.publish(marker_name(1), json.dumps(marker | {"fingerprint": "f" * 64}).encode())
    report = verify(corpus)
    assert report.problems == [f"commits/00001.json: of another run ({'f' * 64}) than run.json"] and report.corrupt == 1
    assert repair(corpus, report) == [marker_name(1)]
    write_shard(corpus, 1)
    assert verify(corpus).whole and corpus.read_marker(1) == marker


def test_a_marker_that_names_no_run_is_damaged(url: str) -> None:
    corpus = make_corpus(url)
    marker = corpus.read_marker(1)
    corpus.publish(marker_name(1), json.dumps({**marker, "fingerprint": None}).encode())
    assert verify(corpus).problems == ["commits/00001.json: ValueError: does not name its run"]
    del marker["fingerprint"]
    corpus.publish(marker_name(1), json.dumps(marker).encode())
    assert verify(corpus).problems == ["commits/00001.json: ValueError: damaged in fingerprint"]


@pytest.mark.parametrize("given", ["0", "-3"])
def test_it_reads_with_one_process_or_more(tmp_path: Path, capsys: pytest.CaptureFixture[str], given: str) -> None:
    make_corpus(str(tmp_path))
    assert verify_job.main([str(tmp_path), f"--processes={given}"]) == 2
    assert capsys.readouterr().err == f"verify: processes is {given}; allowed: 1 or more\n"


@pytest.mark.timeout(60)
def test_several_processes_find_the_same(tmp_path: Path) -> None:
    corpus = make_corpus(str(tmp_path))
    put(corpus, tar_name(2), b"garbage")
    assert verify(corpus, processes=2) == verify(corpus)


def test_a_shard_is_never_held_in_memory(tmp_path: Path) -> None:
    corpus = Corpus(str(tmp_path))
    corpus.start_run(record(plan={"rows": 40, "shards": 1, "content": ""}))
    writer = ShardWriter(corpus, 0, SETTINGS, USER_SCHEMA, "png", 95)
    for number in range(40):
        one = result(number)
        writer.write(replace(one, image=np.random.default_rng(number).integers(0, 256, (512, 512, 3), dtype=np.uint8)))
    marker = writer.commit({})
    image_bytes = marker["files"][tar_name(0)]["bytes"] / 40
    tracemalloc.start()
    try:
        assert verify(corpus).whole
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 40 * image_bytes > 30e6 and peak_bytes < 6 * image_bytes + 2e6


@pytest.mark.parametrize("name", [tar_name, metadata_name, marker_name])
def test_swapped_files_are_found(url: str, name: Callable[[int], str]) -> None:
    corpus = make_corpus(url)
    one, two = corpus.read(name(0)), corpus.read(name(1))
    put(corpus, name(0), two)
    put(corpus, name(1), one)
    assert verify(corpus).corrupt == 2


def repack(corpus: Corpus, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], list[tuple[tarfile.TarInfo, bytes]]]) -> None:
    """Rewrites the tar of shard 0 with its members changed."""
    with tarfile.open(fileobj=io.BytesIO(corpus.read(tar_name(0)))) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member, data in change(members):
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    put(corpus, tar_name(0), buffer.getvalue())
    seal(corpus, 0)


def edited(
    ending: str, edit: Callable[[bytes], bytes]
) -> Callable[[list[tuple[tarfile.TarInfo, bytes]]], list[tuple[tarfile.TarInfo, bytes]]]:
    return lambda members: [(m, edit(data) if m.name == f"ключ-0001.{ending}" else data) for m, data in members]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda members: members[3:], "holds 'ключ-0001' where 'ключ-0000' belongs"),
        (lambda members: members[:-3], "ends where 'ключ-0003' belongs"),
        (lambda members: members[3:6] + members[:3] + members[6:], "holds 'ключ-0001' where 'ключ-0000' belongs"),
        (lambda members: [*members, (tarfile.TarInfo("other.txt"), b"")], "holds 'other', which is no row's"),
        (lambda members: members[1:], "ключ-0000: holds ['png', 'txt'], not ['json', 'png', 'txt']"),
        (edited("txt", lambda data: data + b"!"), "ключ-0001: its txt is not its prompt"),
        (
            edited("json", lambda data: data.replace(b"null", b'"x"')),
            "ключ-0001: its json differs from its row in negative_prompt",
        ),
        (edited("json", lambda data: b"{"), "JSONDecodeError"),
        (edited("png", lambda data: data + b"\0"), "ключ-0001: the image's SHA-256 is not its row's"),
        (edited("png", lambda data: data[:60]), "ключ-0001: the image can't be read"),
        (edited("png", lambda data: b"GIF89a"), "ключ-0001: the image can't be read"),
    ],
)
def test_a_tar_that_fits_its_marker_must_fit_its_rows(tmp_path: Path, change: Callable[..., object], said: str) -> None:
    corpus = make_corpus(str(tmp_path))
    repack(corpus, change)  # type: ignore[arg-type]
    report = verify(corpus)
    assert report.corrupt == 1 and any(said in problem for problem in report.problems), report.problems


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("width", 17, "its row says png of (17, 24)"),
        ("sha256", "0" * 64, "the image's SHA-256 is not its row's"),
        ("prompt", "another", "its txt is not its prompt"),
        ("key", "ключ-0001", "holds 'ключ-0000' where 'ключ-0001' belongs"),
        ("status", "error", "holds 'ключ-0000' where 'ключ-0003' belongs"),
        ("key", None, "where None belongs"),
    ],
)
def test_rows_that_fit_their_marker_must_fit_the_tar(tmp_path: Path, column: str, value: object, said: str) -> None:
    corpus = make_corpus(str(tmp_path))
    table = pq.read_table(io.BytesIO(corpus.read(metadata_name(0))))
    rows = table.to_pylist()
    for row in rows[:2]:
        row[column] = value
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), buffer)
    put(corpus, metadata_name(0), buffer.getvalue())
    seal(corpus, 0)
    report = verify(corpus)
    assert any(said in problem for problem in report.problems), report.problems
    assert report.corrupt == 1


def repeat_keys(corpus: Corpus) -> None:
    """Gives shard 1 what shard 0 holds."""
    marker = corpus.read_marker(0)
    for name in (tar_name, metadata_name):
        put(corpus, name(1), corpus.read(name(0)))
    put(corpus, marker_name(1), json.dumps({**marker, "shard": 1, "files": corpus.read_marker(1)["files"]}).encode())
    seal(corpus, 1)


def test_one_key_in_two_shards_is_found(tmp_path: Path) -> None:
    corpus = make_corpus(str(tmp_path))
    repeat_keys(corpus)
    report = verify(corpus)
    assert report.corrupt == 1
    assert "metadata/00001.parquet: key 'ключ-0000' occurs twice in the corpus" in report.problems


@pytest.mark.parametrize("content", [b"null", b"[]", b'"x"', b'{"shard": 0}', b'{"shard": 0, "files": 1}', b"\xff\xfe"])
def test_a_marker_of_another_kind_is_corrupt(tmp_path: Path, content: bytes) -> None:
    corpus = make_corpus(str(tmp_path))
    put(corpus, marker_name(0), content)
    assert verify(corpus).summary() == {"shards": 3, "rows": 8, "ok": 6, "failed": 2, "missing": 0, "corrupt": 1, "unreadable": 0}


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"{",
        b"[]",
        b"{}",
        b'{"configuration": {}, "plan": {"rows": "x", "shards": 3}}',
        b'{"configuration": {"output": 1}, "plan": {"rows": 12, "shards": 3}}',
    ],
)
def test_without_its_run_record_a_corpus_is_not_whole(url: str, content: bytes | None) -> None:
    corpus = make_corpus(url)
    put(corpus, "run.json", content)
    report = verify(corpus)
    assert (report.shards, report.rows, report.missing, report.corrupt) == (3, 12, 0, 1)
    assert report.problems[0].startswith("run.json: ")


@pytest.mark.parametrize(("plan", "missing", "corrupt"), [((12, 5), 2, 0), ((12, 2), 0, 1), ((13, 3), 0, 1)])
def test_the_plan_counts(url: str, plan: tuple[int, int], missing: int, corrupt: int) -> None:
    corpus = make_corpus(url)
    document = json.loads(corpus.read("run.json"))
    document["plan"].update(rows=plan[0], shards=plan[1])
    corpus.publish("run.json", json.dumps(sealed(document)).encode())
    report = verify(corpus)
    assert (report.missing, report.corrupt) == (missing, corrupt)


def test_where_nothing_is_there_is_no_corpus(url: str) -> None:
    with pytest.raises(UsageError, match="holds no corpus"):
        verify(Corpus(url))


def run_job(url: str, *options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "jobs/verify.py", url, *options], capture_output=True, text=True, timeout=60)


def test_the_job_says_it_in_lines_and_in_json(tmp_path: Path) -> None:
    corpus = make_corpus(str(tmp_path / "corpus"))
    whole = run_job(corpus.root)
    assert (whole.returncode, whole.stderr) == (0, "")
    assert json.loads(whole.stdout.splitlines()[-1]) == verify(corpus).summary()
    assert "is whole" in whole.stdout
    for name in files(corpus):
        put(corpus, name, b"garbage")
    damaged = run_job(corpus.root)
    assert (damaged.returncode, damaged.stderr) == (1, "")
    assert json.loads(damaged.stdout.splitlines()[-1])["corrupt"] == 4, "three shards and the run record"
    repaired = run_job(corpus.root, "--repair")
    assert repaired.returncode == 1 and repaired.stdout.count("repair: commits/") == 3
    assert corpus.committed() == set()
    nothing = run_job(str(tmp_path / "nothing"))
    assert (nothing.returncode, nothing.stdout, nothing.stderr.count("\n")) == (2, "", 1)


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
    monkeypatch.setattr(verify_job, "repair", refuse)
    assert verify_job.main([corpus.root, "--repair", "--processes=1"]) == 2
    printed = capsys.readouterr()
    assert printed.out.startswith("problem: images/00001.tar: ") and printed.err == "verify: output.url is being written\n"


@pytest.mark.parametrize("part", [(0, 1), (1, 3)])
def test_nothing_is_repaired_next_to_a_run(url: str, part: tuple[int, int]) -> None:
    corpus = make_corpus(url)
    put(corpus, tar_name(1), b"garbage")
    report = verify(corpus)
    with RunLock(corpus, part=part):
        with pytest.raises(UsageError, match="is being written by process"):
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


def test_a_card_from_after_the_last_commit_is_the_last(tmp_path: Path) -> None:
    corpus = make_corpus(str(tmp_path))
    assert not finished(corpus)
    assert finish(corpus) == {"rows": 12, "ok": 9, "failed": 3}
    assert finished(corpus)
    write_shard(corpus, 1)
    assert not finished(corpus)
