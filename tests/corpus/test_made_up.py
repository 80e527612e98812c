"""Made-up corpora: whatever their files claim, the check ends in bounded time and memory, and finds what is wrong."""

import io
import json
import os
import resource
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybridiff.corpus import Corpus, repair, verify
from hybridiff.corpus.layout import marker_name, metadata_name, tar_name
from hybridiff.corpus.reader import LARGEST_MEMBER, read_samples
from hybridiff.corpus.record import sealed
from hybridiff.errors import StorageError
from hybridiff.storage.folder import SMALL_FILE
from tests.corpus.corpora import make_corpus
from tests.storage.faults import put, seal

TERABYTE = 1 << 40
MEMORY = 6 << 30  # bytes of address space, most of it libraries'


def sparse(path: Path, size: int, head: bytes = b"") -> None:
    """A file of zeros that takes no space."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)


def claim(corpus: Corpus, index: int, **changed: Any) -> None:
    """Lets a marker claim the sizes that its files have, and more."""
    marker = corpus.read_marker(index)
    for name, file in marker["files"].items():
        file["bytes"] = corpus.fs.size(corpus.path(name))
    corpus.publish(marker_name(index), json.dumps(marker | changed).encode())


def header(size: int, kind: bytes = tarfile.REGTYPE, name: str = "ключ-0000.png") -> bytes:
    """The header of a member that claims a size."""
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def rows(corpus: Corpus, change: Callable[[pa.Table], pa.Table], **options: Any) -> None:
    """Rewrites the rows of shard 0 so that they fit the marker."""
    buffer = io.BytesIO()
    pq.write_table(change(pq.read_table(io.BytesIO(corpus.read(metadata_name(0))))), buffer, **options)
    put(corpus, metadata_name(0), buffer.getvalue())
    seal(corpus, 0)


def replace(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)


def long_texts(table: pa.Table) -> pa.Table:
    return replace(table, "prompt", pa.array(["m" * (50 << 20)] * table.num_rows))


def many_rows(corpus: Corpus) -> None:
    """A million failed rows in a file of a few kilobytes, which the marker counts."""
    table = pq.read_table(io.BytesIO(corpus.read(metadata_name(0)))).slice(2, 1)
    many = pa.concat_tables([table] * 1000).combine_chunks()
    rows(corpus, lambda _: pa.concat_tables([many] * 1000))
    claim(corpus, 0, rows=1_000_000, ok=0, failed=1_000_000)


def linked(corpus: Corpus, name: str, target: str) -> None:
    os.unlink(corpus.path(name))
    os.symlink(target, corpus.path(name))


def fifo(corpus: Corpus, name: str) -> None:
    os.unlink(corpus.path(name))
    os.mkfifo(corpus.path(name))


CASES: dict[str, tuple[Callable[[Corpus, Path], object], str]] = {
    "sparse tar": (lambda c, p: (sparse(p / tar_name(0), TERABYTE), claim(c, 0)), "something follows the end of the archive"),
    "sparse table": (lambda c, p: (sparse(p / metadata_name(0), TERABYTE), claim(c, 0)), "metadata/00000.parquet: ArrowInvalid"),
    "sparse tar of another size": (lambda c, p: sparse(p / tar_name(0), TERABYTE), f"{TERABYTE} bytes, its marker says"),
    "endless member": (
        lambda c, p: (sparse(p / tar_name(0), TERABYTE, header(TERABYTE - 512)), claim(c, 0)),
        f"allowed: {LARGEST_MEMBER} or fewer",
    ),
    "endless header": (
        lambda c, p: (sparse(p / tar_name(0), TERABYTE, header(TERABYTE >> 1, tarfile.XHDTYPE)), claim(c, 0)),
        "is sparse, or has a header of more than",
    ),
    "sparse member": (
        lambda c, p: (sparse(p / tar_name(0), 1 << 20, header(0, tarfile.GNUTYPE_SPARSE)), claim(c, 0)),
        "is sparse, or has a header of more than",
    ),
    "device tar": (lambda c, p: linked(c, tar_name(0), "/dev/zero"), "images/00000.tar: not a regular file"),
    "device table": (lambda c, p: linked(c, metadata_name(0), "/dev/zero"), "metadata/00000.parquet: not a regular file"),
    "device marker": (lambda c, p: linked(c, marker_name(0), "/dev/zero"), "commits/00000.json: not a regular file"),
    "device record": (lambda c, p: linked(c, "run.json", "/dev/zero"), "run.json: ValueError: not a regular file"),
    "FIFO tar": (lambda c, p: fifo(c, tar_name(0)), "images/00000.tar: not a regular file"),
    "FIFO marker": (lambda c, p: fifo(c, marker_name(0)), "commits/00000.json: not a regular file"),
    "large marker": (lambda c, p: sparse(p / marker_name(0), TERABYTE), "commits/00000.json: 1099511627776 bytes; allowed"),
    "deep record": (lambda c, p: c.publish("run.json", b"[" * 200_000), "run.json: "),
    "shared texts": (lambda c, p: rows(c, long_texts), "its txt is not its prompt"),
    "many rows": (lambda c, p: many_rows(c), "occurs twice in the shard"),
}


@pytest.mark.timeout(200)
@pytest.mark.parametrize("case", CASES)
def test_the_check_of_a_made_up_corpus_is_bounded(tmp_path: Path, case: str) -> None:
    make, said = CASES[case]
    make(make_corpus(str(tmp_path)), tmp_path)
    command = [sys.executable, "-m", "hybridiff", "verify", str(tmp_path), "--processes=1"]
    limits = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, **limits)  # type: ignore[call-overload]
    assert done.returncode == 1 and done.stderr == "", done.stderr[-2000:]
    assert said in done.stdout and json.loads(done.stdout.splitlines()[-1])["corrupt"] == 1, done.stdout[-2000:]


@pytest.mark.parametrize("name", ["run.json", marker_name(0)])
def test_no_command_waits_for_a_fifo_in_place_of_a_file(name: str, tmp_path: Path) -> None:
    corpus = make_corpus(str(tmp_path))
    os.unlink(tmp_path / name)
    os.mkfifo(tmp_path / name)
    with pytest.raises(StorageError, match="not a regular file"):
        corpus.read(name)


@pytest.mark.parametrize("name", ["run.json", marker_name(0), "evaluations/a.json"])
def test_no_command_reads_an_endless_file_in_place_of_a_small_one(name: str, tmp_path: Path) -> None:
    corpus = make_corpus(str(tmp_path))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    sparse(tmp_path / name, TERABYTE)
    with pytest.raises(StorageError, match=f"{name}: {TERABYTE} bytes; allowed: {SMALL_FILE} or fewer"):
        corpus.read(name)


def test_a_table_that_unfolds_to_too_much_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = make_corpus(str(tmp_path))
    rows(corpus, lambda table: replace(table, "prompt", pa.array(["m" * (1 << 20)] * 4)), use_dictionary=False)
    monkeypatch.setattr("hybridiff.corpus.check._LARGEST_ROW_GROUP", 4 << 20)
    (problem,) = verify(corpus).problems
    assert "a row group unfolds to" in problem and problem.endswith("allowed: 4194304 or fewer")


def test_a_plan_of_a_billion_shards_is_counted_and_not_listed(tmp_path: Path) -> None:
    corpus = make_corpus(str(tmp_path))
    document = json.loads(corpus.read("run.json"))
    document["plan"].update(rows=10**12, shards=10**9)
    corpus.publish("run.json", json.dumps(sealed(document)).encode())
    report = verify(corpus)
    assert report.missing == 10**9 - 3 and len(report.problems) == 11
    assert report.problems[-1] == f"commits/: {10**9 - 13} more markers missing"


@pytest.mark.parametrize(
    "plan", [{"rows": 12, "shards": 3.0}, {"rows": 12, "shards": True}, {"rows": -1, "shards": -1}, {"rows": 1}]
)
def test_a_plan_that_is_none_is_a_problem(tmp_path: Path, plan: dict[str, Any]) -> None:
    corpus = make_corpus(str(tmp_path))
    document = json.loads(corpus.read("run.json"))
    corpus.publish("run.json", json.dumps(sealed(document | {"plan": plan})).encode())
    report = verify(corpus)
    assert report.corrupt == 1 and report.problems[0].startswith("run.json: ") and report.missing == 0


@pytest.mark.parametrize(
    "changed",
    [{"shard": 0.0}, {"shard": False}, {"rows": 4.0}, {"rows": -1, "ok": 0, "failed": -1}, {"files": {}}, {"ok": 2**70}],
)
def test_a_marker_of_other_types_is_corrupt(tmp_path: Path, changed: dict[str, Any]) -> None:
    corpus = make_corpus(str(tmp_path))
    corpus.publish(marker_name(0), json.dumps(corpus.read_marker(0) | changed).encode())
    assert list(verify(corpus).damaged) == [0]


def test_a_second_name_for_a_marker_is_found_and_is_no_marker(tmp_path: Path) -> None:
    corpus = make_corpus(str(tmp_path))
    corpus.publish("commits/000000.json", corpus.read(marker_name(0)))
    corpus.publish("commits/notes.txt", b"mine")
    report = verify(corpus)
    assert report.problems == ["commits/000000.json: no shard's marker has this name"] and report.corrupt == 1
    assert (report.shards, report.rows) == (3, 12) and repair(corpus, report) == []
    assert report.notes == ["not checked, as no marker counts them: stats, commits/notes.txt"]


def test_shards_that_were_swapped_with_their_markers_are_found(tmp_path: Path) -> None:
    corpus = make_corpus(str(tmp_path))
    old = {index: [corpus.read(name(index)) for name in (tar_name, metadata_name)] for index in (0, 1)}
    for index in (0, 1):
        for name, data in zip((tar_name, metadata_name), old[1 - index], strict=True):
            put(corpus, name(index), data)
        seal(corpus, index)
    report = verify(corpus)
    assert sorted(report.damaged) == [0, 1]
    assert "metadata/00000.parquet: ключ-0004: its file is 'images/00001.tar/ключ-0004.png'" in report.problems[0]


@pytest.mark.parametrize("tail", [b"x", b"\0" * 10240, b"\0" * 20000, "archive"])
def test_what_follows_the_end_of_a_tar_is_found(tmp_path: Path, tail: bytes | str) -> None:
    corpus = make_corpus(str(tmp_path))
    tar = corpus.read(tar_name(0))
    put(corpus, tar_name(0), tar + (tar if isinstance(tail, str) else tail))
    seal(corpus, 0)
    assert verify(corpus).problems == ["images/00000.tar: ValueError: something follows the end of the archive"]


@pytest.mark.parametrize("size", [8704 + 512 * blocks for blocks in range(-1, 4)])  # 8704: both blocks of the end fill the record
def test_a_tar_may_end_anywhere_in_a_record(size: int) -> None:
    for tail in (b"", b"\0" * tarfile.RECORDSIZE):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            member = tarfile.TarInfo("a.png")
            member.size = size
            tar.addfile(member, io.BytesIO(bytes(size)))
        whole = io.BytesIO(buffer.getvalue() + tail)
        if tail:
            with pytest.raises(ValueError, match="follows the end"):
                list(read_samples(whole))
        else:
            assert [key for key, _ in read_samples(whole)] == ["a"]


@pytest.mark.parametrize("kind", ["doubled", "many", "link"])
def test_members_that_a_sample_does_not_have_are_found(tmp_path: Path, kind: str) -> None:
    corpus, buffer = make_corpus(str(tmp_path)), io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(corpus.read(tar_name(0)))) as old, tarfile.open(fileobj=buffer, mode="w") as new:
        for number, member in enumerate(old):
            data = old.extractfile(member).read()  # type: ignore[union-attr]
            new.addfile(member, io.BytesIO(data))
            if number:
                continue
            if kind == "doubled":
                new.addfile(member, io.BytesIO(data))
            for extra in range(100 if kind == "many" else 0):
                new.addfile(tarfile.TarInfo(f"ключ-0000.{extra}"))
            if kind == "link":
                link = tarfile.TarInfo("ключ-0000.lnk")
                link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
                new.addfile(link)
    put(corpus, tar_name(0), buffer.getvalue())
    seal(corpus, 0)
    said = {"doubled": "holds 'ключ-0000.json' twice", "many": "too many files of", "link": "is not a plain file"}[kind]
    report = verify(corpus)
    assert list(report.damaged) == [0] and said in report.problems[0], report.problems
