"""The run record, the markers and whether a place can be written."""

import errno
import json
import re
from pathlib import Path
from typing import Any

import pytest

from hybridiff.corpus import Corpus, ShardWriter, differences, verify
from hybridiff.corpus.layout import LEASES, lease_of, marker_name, stats_name, tar_name
from hybridiff.corpus.reader import totals
from hybridiff.corpus.record import without
from hybridiff.corpus.writable import check_could_be_written, check_free, check_writable
from hybridiff.errors import StorageError, UsageError
from hybridiff.storage.lease import Leases
from tests.corpus.corpora import PNG, RUN_VALUES, USER_SCHEMA, files, make_corpus, record, result, write_shard


def changed(section: str, **options: Any) -> Any:
    configuration = {**record().configuration}
    configuration[section] = {**configuration.get(section, {}), **options}
    return record(configuration=configuration)


def test_differences_are_named_with_both_values() -> None:
    old = {"a": {"x": 1, "y": [1]}, "b": None, "gone": 1}
    new = {"a": {"x": 2, "y": [1]}, "b": {"z": "é"}, "new": None}
    assert differences(old, new) == [
        "a.x is 1 there, 2 here",
        'b is null there, {"z": "é"} here',
        "gone is 1 there, absent here",
        "new is absent there, null here",
    ]
    assert differences(old, old) == []


def test_without_takes_options_and_sections() -> None:
    assert without({"a": {"x": 1, "y": 2}, "b": {"z": 3}}, {"a.x", "b", "y"}) == {"a": {"y": 2}}


def test_a_run_is_recorded_once_and_the_same_run_may_go_on(url: str) -> None:
    corpus = Corpus(url)
    corpus.start_run(record())
    first = files(corpus)
    corpus.start_run(record(versions={"torch": "3"}))
    corpus.start_run(changed("parallel", timeout_s=99.0))
    assert files(corpus) == first and set(first) == {"run.json"}
    document = json.loads(first["run.json"])
    assert set(document) == {"configuration", "plan", "fingerprint", "versions", "hardware", "sha256"}
    assert document["configuration"] == record().configuration and document["plan"] == record().plan


def test_another_configuration_is_refused_naming_what_differs(url: str) -> None:
    corpus = Corpus(url)
    corpus.start_run(changed("sampling", steps=50))
    write_shard(corpus, 0)
    with pytest.raises(UsageError) as refused:
        corpus.start_run(record(plan={"rows": 7, "shards": 3, "content": "0" * 64}))
    text = str(refused.value)
    assert text.startswith(f"output.url {corpus.url} already holds a corpus of another configuration: ")
    assert text.endswith(": plan.rows is 12 there, 7 here; sampling.steps is 50 there, 4 here")


def test_a_run_that_committed_nothing_binds_nothing_once_nobody_works_on_it(url: str) -> None:
    failed, corrected = Corpus(url), Corpus(url)
    failed.start_run(changed("sampling", steps=50))
    leases = Leases(failed, LEASES, 60.0)
    assert leases.acquire(lease_of(0))
    for start in (corrected.start_run, corrected.check_run, corrected.check_configuration):
        with pytest.raises(UsageError, match="already holds a corpus of another configuration"):
            start(record())
    leases.release_all()
    assert corrected.check_run(record()) == record().document()
    corrected.check_configuration(record())
    corrected.start_run(record())
    assert corrected.read_run() == record().document() and corrected.fingerprint == record().document()["fingerprint"]


def test_a_run_whose_record_was_replaced_commits_nothing(url: str) -> None:
    slow, quick = Corpus(url), Corpus(url)
    slow.start_run(changed("sampling", steps=50))
    writer = ShardWriter(slow, 0, RUN_VALUES, USER_SCHEMA, PNG)
    quick.start_run(record())
    writer.write(result(0))
    with pytest.raises(StorageError, match="is a run's of another configuration by now"):
        writer.commit({})
    writer.discard()
    assert set(files(quick)) == {"run.json"}


def test_fingerprint_is_of_what_the_content_depends_on() -> None:
    fingerprint = record().document()["fingerprint"]
    assert changed("output", url="there").document()["fingerprint"] == fingerprint
    assert record(versions={}, hardware={}).document()["fingerprint"] == fingerprint
    assert changed("sampling", steps=5).document()["fingerprint"] != fingerprint
    assert record(plan={**record().plan, "content": "1"}).document()["fingerprint"] != fingerprint


def test_secrets_are_not_written(url: str) -> None:
    corpus = Corpus(url)
    corpus.start_run(changed("output", url="s3://me:hidden1@host/x", token="hidden2"))
    assert b"hidden" not in files(corpus)["run.json"]


@pytest.mark.parametrize(("section", "name"), [("sampling", "negative_prompt"), ("output", "caption"), ("select", "where")])
def test_texts_of_rows_are_no_secrets(section: str, name: str) -> None:
    one, other = (changed(section, **{name: f"(signature:{weight}), token: {{prompt}}"}).document() for weight in (1.3, 1.5))
    assert one["configuration"][section][name] == "(signature:1.3), token: {prompt}"
    assert one["fingerprint"] != other["fingerprint"]


def test_the_first_of_two_runs_that_start_at_once_wins(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Corpus(url), Corpus(url)
    found = iter([None, record().document()])
    first.start_run(record())
    monkeypatch.setattr(second, "read_run", lambda: next(found))
    second.start_run(record(versions={"torch": "3"}))
    assert json.loads(files(first)["run.json"])["versions"] == {"torch": "2"}
    found = iter([None, record().document()])
    with pytest.raises(UsageError, match=r"sampling\.steps is 4 there, 9 here"):
        second.start_run(changed("sampling", steps=9))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"plan": 1}', b"\xff"])
def test_a_damaged_run_record_is_refused(url: str, content: bytes) -> None:
    corpus = Corpus(url)
    corpus.publish("run.json", content)
    with pytest.raises(UsageError, match=r"run\.json is"):
        corpus.start_run(record())


def test_committed_lists_only_markers(url: str) -> None:
    corpus = Corpus(url)
    assert corpus.committed() == set()
    for name in ("commits/00000.json", "commits/123456.json", "commits/.00002.json.ab.tmp", "commits/3.json", "images/00004.tar"):
        corpus.publish(name, b"{}")
    assert corpus.committed() == {0, 123456}
    assert (marker_name(123456), tar_name(7)) == ("commits/123456.json", "images/00007.tar")


def test_totals_and_markers(url: str) -> None:
    corpus = make_corpus(url)
    assert totals(corpus, range(3)) == {"rows": 12, "ok": 9, "failed": 3}
    assert totals(corpus, []) == {"rows": 0, "ok": 0, "failed": 0}
    assert corpus.read_marker(1)["shard"] == 1


def test_writable_leaves_nothing(url: str) -> None:
    corpus = Corpus(url)
    for check in (check_could_be_written, check_writable):
        check(corpus)
        assert files(corpus) == {}


def test_not_writable_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UsageError, match=r"^output.url is .*/file/corpus: it is not writable \((NotADirectory|FileExists)Error.*$"
    ):
        check_writable(Corpus(str(tmp_path / "file" / "corpus")))
    with pytest.raises(UsageError, match=r"^output.url is .*/file/corpus: it is not writable \(NotADirectoryError.*$"):
        check_could_be_written(Corpus(str(tmp_path / "file" / "corpus")))
    check_could_be_written(Corpus(str(tmp_path / "new" / "corpus")))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(UsageError, match=r"^output.url is nosuch://host/x: no file system for it"):
        Corpus("nosuch://host/x")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StorageError),
        (OSError(errno.EROFS, "Read-only file system"), UsageError),
        (PermissionError(errno.EACCES, "Permission denied"), UsageError),
        (RuntimeError("Unable to locate credentials"), StorageError),
    ],
    ids=str,
)
def test_a_place_that_is_not_writable_is_a_mistake_or_trouble(
    error: Exception, kind: type[Exception], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    corpus = Corpus(url)
    for name in ("pipe_file", "open", "ls", "info"):
        monkeypatch.setattr(type(corpus.fs), name, fail)
    monkeypatch.setattr("os.makedirs", fail)
    for check, said in ((check_writable, "it is not writable"), (check_free, "it can't be listed")):
        with pytest.raises(kind, match=rf"^output\.url is .*: {said} \(.*{re.escape(str(error))}.*\)$"):
            check(corpus)


def test_a_link_out_of_the_corpus_is_a_mistake_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/images").symlink_to(tmp_path)
    with pytest.raises(UsageError, match=r"it is not writable \(StorageError: .* is a link out of"):
        check_writable(Corpus(str(tmp_path / "corpus")))
    with pytest.raises(UsageError, match=r"it is not writable \(StorageError: .* is a link out of"):
        check_could_be_written(Corpus(str(tmp_path / "corpus")))


def test_a_corpus_that_lost_its_record_goes_on_with_the_run_that_made_it(url: str) -> None:
    before = files(make_corpus(url))
    corpus = Corpus(url)
    corpus.fs.rm_file(corpus.path("run.json"))
    for other in (changed("sampling", steps=9), record(plan={**record().plan, "content": "1"})):
        for start in (Corpus(url).start_run, Corpus(url).check_run):
            with pytest.raises(
                UsageError, match=r"lost its run\.json, and commits/00000\.json is of another run \([0-9a-f]{64}\)"
            ):
                start(other)
    assert "run.json" not in files(corpus)
    corpus.start_run(record())
    write_shard(corpus, 1)
    assert {n: d for n, d in files(corpus).items() if n[:5] != "stats"} == {n: d for n, d in before.items() if n[:5] != "stats"}


def test_without_its_record_shards_that_do_not_name_their_run_are_refused(url: str) -> None:
    corpus = Corpus(url)
    write_shard(corpus, 0)  # by nobody's run
    with pytest.raises(UsageError, match=r"is of another run \(it does not say which\) than this one"):
        corpus.start_run(record())
    corpus.publish(marker_name(0), b"{")
    with pytest.raises(UsageError, match=r"commits/00000\.json in .* is damaged .*; run hybridiff verify --repair"):
        corpus.start_run(record())


def test_going_on_reads_no_marker(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = make_corpus(url)
    read: list[str] = []
    fetch = Corpus.read
    monkeypatch.setattr(Corpus, "read", lambda self, name: read.append(name) or fetch(self, name))
    monkeypatch.setattr(Corpus, "names", lambda *_: pytest.fail("nothing needs listing"))
    Corpus(url).start_run(record())
    assert set(read) == {"run.json"} and corpus.fingerprint == record().document()["fingerprint"]


def test_other_versions_are_known_and_those_of_each_shard_are_kept(url: str) -> None:
    make_corpus(url)
    corpus = Corpus(url)
    corpus.start_run(record(versions={"torch": "3"}))
    assert corpus.other_versions == ['torch is "2" there, "3" here']
    write_shard(corpus, 1)
    assert [json.loads(corpus.read(stats_name(index)))["versions"] for index in range(2)] == [{"torch": "2"}, {"torch": "3"}]
    corpus.start_run(record())
    assert corpus.other_versions == []


def test_storage_that_fails_for_a_moment_is_no_removed_output(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = make_corpus(url)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no answer")

    monkeypatch.setattr(type(corpus.fs), "cat_file", fail)
    with pytest.raises(OSError, match=r"^no answer$"):
        corpus.check_there()
    monkeypatch.undo()
    check = Corpus.check_there
    checks: list[int] = []

    def sometimes(self: Corpus) -> None:
        checks.append(1)
        if len(checks) == 2:  # after the commit
            raise OSError("no answer")
        check(self)

    monkeypatch.setattr(Corpus, "check_there", sometimes)
    write_shard(corpus, 1)
    assert len(checks) == 2 and corpus.committed() == {0, 1, 2} and verify(corpus).whole
