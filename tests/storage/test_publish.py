"""Files appear whole or not at all."""

import errno
import hashlib
import os
from pathlib import Path
from typing import Any, ClassVar

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from hybridiff.corpus import Corpus
from hybridiff.corpus.writable import check_writable
from hybridiff.errors import StorageError, UsageError
from hybridiff.storage.filesystem import is_local
from hybridiff.storage.publish import Publication, publish_bytes, publishing
from tests.corpus.corpora import files


def test_a_file_appears_only_at_the_end_and_is_counted(url: str) -> None:
    corpus = Corpus(url)
    path = corpus.path("deep/er/file")
    with publishing(corpus.fs, path) as handle:
        assert handle.write(b"ab") == 2
        handle.write(memoryview(b"cd"))
        assert handle.tell() == 4 and not corpus.fs.exists(path)
    assert (handle.bytes, handle.sha256) == (4, hashlib.sha256(b"abcd").hexdigest())
    assert files(corpus) == {"deep/er/file": b"abcd"}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_exception_leaves_nothing(url: str, error: type[BaseException]) -> None:
    corpus = Corpus(url)
    with pytest.raises(error), publishing(corpus.fs, corpus.path("file")) as handle:
        handle.write(b"ab")
        raise error
    assert files(corpus) == {}


def test_writing_after_a_discard_goes_nowhere(url: str) -> None:
    corpus = Corpus(url)
    handle = Publication(corpus.fs, corpus.path("file"))
    handle.discard()
    assert handle.write(b"ab") == 2
    assert files(corpus) == {}


def test_an_exception_keeps_the_file_that_was_there(url: str) -> None:
    corpus = Corpus(url)
    publish_bytes(corpus.fs, corpus.path("file"), b"old")
    with pytest.raises(OSError), publishing(corpus.fs, corpus.path("file")) as handle:
        handle.write(b"new")
        raise OSError
    assert files(corpus) == {"file": b"old"}
    publish_bytes(corpus.fs, corpus.path("file"), b"new")
    assert files(corpus) == {"file": b"new"}


def test_a_failing_commit_leaves_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("disk full")

    corpus = Corpus(url)
    monkeypatch.setattr("os.replace", fail)
    monkeypatch.setattr(MemoryFileSystem, "cp_file", fail)
    with pytest.raises(OSError, match="disk full"):
        publish_bytes(corpus.fs, corpus.path("file"), b"ab")
    assert files(corpus) == {}


def test_what_a_killed_process_left_is_removed_on_the_next_try(url: str) -> None:
    corpus = Corpus(url)
    Publication(corpus.fs, corpus.path("file")).write(b"ab")
    other = Publication(corpus.fs, corpus.path("file.txt"))
    assert len(files(corpus)) == 2
    publish_bytes(corpus.fs, corpus.path("file"), b"cd")
    other.commit()
    assert files(corpus) == {"file": b"cd", "file.txt": b""}


def test_exclusive_leaves_the_first(url: str) -> None:
    corpus = Corpus(url)
    publish_bytes(corpus.fs, corpus.path("file"), b"first", exclusive=True)
    with pytest.raises(FileExistsError):
        publish_bytes(corpus.fs, corpus.path("file"), b"second", exclusive=True)
    assert files(corpus) == {"file": b"first"}


class _Object:
    """What object storage's handles do."""

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls
        self.closed = False

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self.calls.append(name)


class _ObjectStorage:
    protocol = ("s3", "s3a")

    def __init__(self) -> None:
        self.calls: list[str] = []

    def abort_uploads(self, path: str) -> None:
        self.calls.clear()

    def open(self, path: str, mode: str, block_size: int, autocommit: bool) -> _Object:
        assert not autocommit
        self.calls.append(mode)
        self.handle = _Object(self.calls)
        return self.handle


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("name", ["file/a.json", "file/b/a.json"])
def test_a_file_where_a_directory_should_be_is_no_file_of_another_process(tmp_path: Path, name: str, exclusive: bool) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        publish_bytes(LocalFileSystem(), str(tmp_path / name), b"{}", exclusive=exclusive)


def test_objects_are_committed_late_or_discarded() -> None:
    fs: Any = _ObjectStorage()
    publish_bytes(fs, "bucket/file", b"ab", exclusive=True)
    assert fs.calls == ["xb", "write", "close", "commit"]
    fs.calls.clear()
    with pytest.raises(OSError), publishing(fs, "bucket/file") as handle:
        handle.write(b"ab")  # with what follows, as small pieces are sent together
        handle.write(bytes(1 << 20))
        raise OSError
    assert fs.calls == ["wb", "write", "write", "discard"]
    assert fs.handle.closed, "garbage collection of an open handle publishes"


def test_an_object_that_is_there_already_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(22, "At least one of the preconditions you specified did not hold.")

    fs: Any = _ObjectStorage()
    monkeypatch.setattr(_Object, "commit", refuse, raising=False)
    for there, error in ((True, FileExistsError), (False, StorageError)):
        fs.exists, fs.invalidate_cache = lambda _, there=there: there, lambda _: None
        fs.cat_file = lambda _: b"another's"
        with pytest.raises(OSError) as raised:
            publish_bytes(fs, "bucket/file", b"ab", exclusive=True)
        assert type(raised.value) is error


def nothing(path: str) -> bytes:
    """What reading an object raises that is not there."""
    raise FileNotFoundError(path)


def test_an_object_that_was_there_and_is_gone_by_now_is_said_to_have_been(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusal(Exception):
        response: ClassVar = {"Error": {"Code": "PreconditionFailed"}}

    def refuse(*_: Any) -> None:
        raise OSError(22, "At least one of the preconditions you specified did not hold.") from Refusal()

    fs: Any = _ObjectStorage()
    monkeypatch.setattr(_Object, "commit", refuse, raising=False)
    for there in (True, False):  # as a lease that its owner releases in this moment, before one look or the other
        fs.exists, fs.invalidate_cache, fs.cat_file = lambda _, there=there: there, lambda _: None, nothing
        with pytest.raises(FileExistsError):
            publish_bytes(fs, "bucket/file", b"ab", exclusive=True)


def test_local_files_get_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").write_bytes(b"")
    corpus = Corpus(str(tmp_path))
    publish_bytes(corpus.fs, corpus.path("published"), b"")
    assert (tmp_path / "published").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_nothing_is_left_where_even_closing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publication = Publication(LocalFileSystem(), str(tmp_path / "file"))
    publication.write(b"data")

    def full() -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(publication._handle, "close", full)
    publication.discard()
    assert list(tmp_path.iterdir()) == []


def test_an_object_that_was_created_though_the_answer_was_lost_is_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(22, "At least one of the preconditions you specified did not hold.")

    fs: Any = _ObjectStorage()
    monkeypatch.setattr(_Object, "commit", refuse, raising=False)
    fs.exists, fs.invalidate_cache, fs.cat_file = lambda _: True, lambda _: None, lambda _: b"ab"
    assert publish_bytes(fs, "bucket/file", b"ab", exclusive=True).closed
    assert fs.calls[-1] == "discard", "an upload of the same content, if it was another's that came first"


def test_a_server_that_cannot_create_an_object_only_if_it_is_absent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "A header you provided implies functionality that is not implemented")

    fs: Any = _ObjectStorage()
    monkeypatch.setattr(_Object, "commit", refuse, raising=False)
    fs.exists, fs.invalidate_cache, fs.cat_file = lambda _: False, lambda _: None, nothing
    with pytest.raises(UsageError, match=r"^bucket/file: its server can't create an object only if it is absent; allowed: "):
        publish_bytes(fs, "bucket/file", b"ab", exclusive=True)
    with pytest.raises(OSError, match="not implemented"):
        publish_bytes(fs, "bucket/file", b"ab")


def test_a_file_that_was_created_though_the_answer_was_lost_is_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def link_twice(source: str, target: str) -> None:  # as a client of NFS that asks again
        link(source, target)
        link(source, target)

    monkeypatch.setattr("os.link", link_twice)
    corpus = Corpus(str(tmp_path))
    corpus.publish("file", b"mine", exclusive=True)
    with pytest.raises(FileExistsError):
        corpus.publish("file", b"another's", exclusive=True)
    assert files(corpus) == {"file": b"mine"}


def test_where_there_are_no_hard_links_the_first_stays_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    corpus = Corpus(str(tmp_path))
    publish_bytes(corpus.fs, corpus.path("file"), b"first", exclusive=True)
    with pytest.raises(FileExistsError):
        publish_bytes(corpus.fs, corpus.path("file"), b"second", exclusive=True)
    assert files(corpus) == {"file": b"first"}
    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(PermissionError):
        publish_bytes(corpus.fs, corpus.path("other"), b"third", exclusive=True)
    assert files(corpus) == {"file": b"first"}, "the name is free again"


def test_small_files_that_killed_processes_left_are_removed_once_they_are_old(tmp_path: Path) -> None:
    corpus = Corpus(str(tmp_path))
    check_writable(corpus)
    ours = [".hybridiff-probe", ".run.json.0123456789abcdef.tmp", "leases/.00000.0.json.0123456789abcdef.tmp"]
    others = [".probe-mine", "notes.tmp", "leases/00000.0.json", ".hidden/.run.json.0123456789abcdef.tmp"]
    for name in [*ours, *others, ".README.md.0123456789abcdef.tmp"]:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
        if not name.startswith(".README"):
            os.utime(path, (path.stat().st_mtime - 3600,) * 2)
    check_writable(corpus)
    assert set(files(corpus)) == {*others, ".README.md.0123456789abcdef.tmp"}


def test_what_a_process_that_was_killed_while_it_tried_to_write_left_is_gone_with_the_next(url: str) -> None:
    corpus = Corpus(url)
    if not is_local(corpus.fs):  # there it has no name
        corpus.publish(".hybridiff-probe", b"probe")
    check_writable(corpus)
    assert files(corpus) == {}


def test_a_file_in_the_way_of_a_directory_is_no_lost_race(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")
    with pytest.raises(NotADirectoryError):
        publish_bytes(LocalFileSystem(), f"{tmp_path}/a/leases/x.json", b"1", exclusive=True)
