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

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybridiff import cli
from hybridiff.corpus import Corpus, Report, ShardWriter, repair, verify, write_card
from hybridiff.corpus.card import finished
from hybridiff.corpus.layout import marker_name, metadata_name, tar_name
from hybridiff.corpus.record import sealed
from hybridiff.errors import UsageError
from tests.corpus.corpora import PNG, RUN_VALUES, USER_SCHEMA, files, make_corpus, record, result, write_shard
from tests.storage.faults import FAULTS, put, repeat_keys, seal


@pytest.mark.parametrize("image_format", ["png", "jpg", "webp"])
def test_a_whole_corpus(url: str, image_format: str) -> None:
    corpus = make_corpus(url, image_format)
    write_card(corpus)
    report = verify(corpus)
    unchecked = "not checked, as no marker counts them: README.md, contact-sheet.png, stats"
    assert report == Report(shards=3, rows=12, ok=9, failed=3, notes=[unchecked])
    assert report.whole


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", [tar_name(1), metadata_name(1), marker_name(1)])
def test_damage_to_any_file_is_found_and_named(url: str, name: str, fault: str) -> None:
    corpus = make_corpus(url)
    put(corpus, name, FAULTS[fault](corpus.read(name)))
    report = verify(corpus)
    if (name, fault) == (marker_name(1), "deleted"):
        assert (report.shards, report.missing, report.corrupt) == (2, 1, 0)
        assert len(report.notes) == 3, "the shard's files without a marker, and stats"
    else:
        assert (report.shards, report.missing, report.corrupt) == (3, 0, 1), report.problems
        assert list(report.damaged) == [1]
    assert report.problems and all(problem.startswith(name) for problem in report.problems)
    assert not report.whole


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
    assert cli.main(["verify", str(tmp_path), f"--processes={given}"]) == 2
    assert capsys.readouterr().err == f"verify: error: --processes is {given!r}; allowed: a whole number from 1 on\n"


@pytest.mark.timeout(60)
def test_several_processes_find_the_same(tmp_path: Path) -> None:
    corpus = make_corpus(str(tmp_path))
    put(corpus, tar_name(2), b"garbage")
    assert verify(corpus, processes=2) == verify(corpus)


def test_a_shard_is_never_held_in_memory(tmp_path: Path) -> None:
    corpus = Corpus(str(tmp_path))
    corpus.start_run(record(plan={"rows": 40, "shards": 1, "content": ""}))
    writer = ShardWriter(corpus, 0, RUN_VALUES, USER_SCHEMA, PNG)
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


def test_a_card_from_after_the_last_commit_is_the_last(tmp_path: Path) -> None:
    corpus = make_corpus(str(tmp_path))
    assert not finished(corpus)
    assert write_card(corpus) == {"rows": 12, "ok": 9, "failed": 3}
    assert finished(corpus)
    write_shard(corpus, 1)
    assert not finished(corpus)
