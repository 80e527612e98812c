"""A path is a path; nothing is changed through a link out of a folder; what has appeared outlasts a power failure."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from hybridiff.corpus import Corpus
from hybridiff.corpus.writable import check_writable
from hybridiff.errors import StorageError, UsageError
from hybridiff.storage.filesystem import creates_if_absent, is_url, locate
from hybridiff.storage.folder import Folder
from hybridiff.storage.lease import Leases
from hybridiff.storage.publish import Publication, publish_bytes
from tests.corpus.corpora import make_corpus, write_shard

NAMES = [
    "a::b",
    "a?b=c",
    "a#b",
    "a%20b",
    "a b ",
    "a[0]",
    "a*b",
    "simplecache::s3",
    "s3:x",
    "file:x",
    "ä\nb",
    "C:\\a",
    "a&token=b",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_local_path_is_used_as_it_is(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in (f"{tmp_path}/{name}/corpus", f"{name}/relative"):
        folder = Folder(url)
        folder.publish("commits/file", b"content")
        assert folder.url == url and folder.names("commits") == ["file"] and folder.read("commits/file") == b"content"
        with Leases(folder, "leases", 60.0).heartbeat() as leases:
            assert leases.acquire("name")
    assert (tmp_path / name / "corpus/commits/file").read_bytes() == (tmp_path / name / "relative/commits/file").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_nothing_is_no_directory() -> None:
    with pytest.raises(UsageError, match="CORPUS is ''; allowed: a directory or an fsspec url"):
        Folder("", "CORPUS")


def test_a_leading_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Folder("~/corpus").publish("file", b"")
    assert (tmp_path / "corpus/file").exists()
    monkeypatch.chdir(tmp_path)
    Folder("./~/corpus").publish("file", b"")
    assert (tmp_path / "~/corpus/file").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket/key", True),
        ("memory://a", True),
        ("file:///a", True),
        ("zip::s3://bucket/a.zip", True),
        ("filecache::abfs://a/b", True),
        ("/x/a::b", False),
        ("a::b://c d", True),
        ("/s3://bucket", False),
        ("s3:/bucket", False),
        ("data", False),
        ("", False),
    ],
)
def test_urls_are_distinguished_from_paths(text: str, expected: bool) -> None:
    assert is_url(text) is expected


def test_urls_of_files_are_paths_too(tmp_path: Path) -> None:
    fs, path = locate(f"file://{tmp_path}/a")
    assert isinstance(fs, LocalFileSystem) and path == f"{tmp_path}/a"


CHANGES: dict[str, Callable[[Folder], object]] = {
    "publish": lambda folder: folder.publish("commits/new", b""),
    "publish exclusively": lambda folder: folder.publish("commits/new", b"", exclusive=True),
    "publish below": lambda folder: folder.publish("commits/deep/new", b""),
    "stream": lambda folder: folder.publishing("commits/new", sweep=True).__enter__(),
    "remove": lambda folder: folder.remove("commits/theirs"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_nothing_is_changed_through_a_link_out_of_the_folder(tmp_path: Path, change: Callable[[Folder], object]) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/theirs").write_bytes(b"theirs")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/commits").symlink_to("../other")
    folder = Folder(str(tmp_path / "corpus"))
    with pytest.raises(StorageError, match=r"/corpus/commits is a link out of .*/corpus, to .*/other; nothing is changed"):
        change(folder)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["theirs"]
    assert folder.read("commits/theirs") == b"theirs", "reading does"


def test_links_to_the_folder_and_within_it_and_of_files_are_no_matter(tmp_path: Path) -> None:
    (tmp_path / "corpus/data").mkdir(parents=True)
    (tmp_path / "corpus/images").symlink_to("data")
    (tmp_path / "link").symlink_to("corpus")
    (tmp_path / "theirs").write_bytes(b"theirs")
    (tmp_path / "corpus/file").symlink_to(tmp_path / "theirs")
    folder = Folder(str(tmp_path / "link"))
    folder.publish("images/a", b"a")
    folder.publish("file", b"ours")
    assert (tmp_path / "corpus/data/a").read_bytes() == b"a"
    assert (tmp_path / "corpus/file").read_bytes() == b"ours" and (tmp_path / "theirs").read_bytes() == b"theirs"
    (tmp_path / "corpus/again").symlink_to(tmp_path / "theirs")
    folder.remove("again")
    assert (tmp_path / "theirs").exists() and not (tmp_path / "corpus/again").exists()


@pytest.mark.parametrize("name", ["images", "metadata", "commits", "stats", "leases", "tables"])
def test_an_output_with_a_link_out_of_it_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/.00000.0.json.0123456789abcdef.tmp").write_bytes(b"")
    os.utime(tmp_path / "other/.00000.0.json.0123456789abcdef.tmp", (0, 0))
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / name).symlink_to(tmp_path / "other")
    with pytest.raises(UsageError, match=f"/corpus/{name} is a link out of "):
        check_writable(Corpus(str(tmp_path / "corpus")))
    assert len(list((tmp_path / "other").iterdir())) == 1 and len(list((tmp_path / "corpus").iterdir())) == 1


def test_a_shard_is_not_written_through_a_link(tmp_path: Path) -> None:
    corpus, other = make_corpus(str(tmp_path / "corpus")), tmp_path / "other"
    other.mkdir()
    (tmp_path / "corpus/metadata").rename(tmp_path / "metadata")
    (tmp_path / "corpus/metadata").symlink_to(other)
    with pytest.raises(StorageError, match="metadata is a link out of"):
        write_shard(corpus, 3)
    assert list(other.iterdir()) == [] and 3 not in corpus.committed()


class Disk:
    """Records what is flushed to the disk and what gets its name, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, str]] = []
        for name in ("replace", "link", "unlink", "remove"):
            self._record(monkeypatch, name, lambda path, target=None: target or path)
        fsync = os.fsync

        def flushed(handle: int) -> None:
            self.calls.append(("fsync", os.readlink(f"/proc/self/fd/{handle}")))
            fsync(handle)

        monkeypatch.setattr(os, "fsync", flushed)

    def _record(self, monkeypatch: pytest.MonkeyPatch, name: str, of: Any) -> None:
        real = getattr(os, name)

        def recorded(*paths: str, **named: Any) -> None:
            real(*paths, **named)
            self.calls.append((name, str(of(*paths))))

        monkeypatch.setattr(os, name, recorded)

    def index(self, call: str, ending: str) -> int:
        return next(n for n, (name, path) in enumerate(self.calls) if name == call and path.endswith(ending))


def test_a_shards_files_and_their_names_are_on_the_disk_before_its_marker_and_that_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    write_shard(Corpus(str(tmp_path / "corpus")), 0)
    marker = disk.index("replace", "commits/00000.json")
    for folder, name in (("images", "00000.tar"), ("metadata", "00000.parquet"), ("stats", "00000.json")):
        content = next(n for n, (call, path) in enumerate(disk.calls) if call == "fsync" and f"/{folder}/.{name}" in path)
        named, directory = disk.index("replace", f"{folder}/{name}"), disk.index("fsync", f"/{folder}")
        assert content < named < directory < marker, name
    assert ("fsync", f"{tmp_path}/corpus/commits") in disk.calls[marker:], "the marker itself"
    made = [n for n, call in enumerate(disk.calls) if call == ("fsync", f"{tmp_path}/corpus")]
    assert len(made) >= 4 and made[0] < marker and ("fsync", str(tmp_path)) in disk.calls[:marker], "new directories"


def test_a_removed_marker_is_gone_from_the_disk_before_anything_else_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(str(tmp_path))
    folder.publish("commits/00000.json", b"")
    disk = Disk(monkeypatch)
    folder.remove("commits/00000.json")
    assert [call for call, _ in disk.calls] == ["remove", "fsync"] and disk.calls[1][1] == f"{tmp_path}/commits"


@pytest.mark.parametrize("exclusive", [False, True])
def test_file_systems_that_flush_no_directories_are_no_obstacle(
    tmp_path: Path, exclusive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def refuse(handle: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{handle}")).is_dir():
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse)
    publish_bytes(LocalFileSystem(), str(tmp_path / "a/b"), b"data", exclusive=exclusive)
    assert (tmp_path / "a/b").read_bytes() == b"data"


def test_a_disk_that_fails_to_flush_is_an_error_that_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=f"Input/output error: '{tmp_path}/a'"):
        publish_bytes(LocalFileSystem(), f"{tmp_path}/a", b"data")


@pytest.mark.parametrize("moment", ["write", "flush", "close"])
def test_an_error_that_names_no_file_gets_its_name(tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    publication = Publication(LocalFileSystem(), f"{tmp_path}/file")
    monkeypatch.setattr(publication._handle, moment, full)
    with pytest.raises(StorageError, match=f"No space left on device: '{tmp_path}/file'") as raised:
        publication.write(bytes(1 << 20))
        publication.commit()
    publication.discard()
    assert raised.value.errno == errno.ENOSPC and not Folder(str(tmp_path)).is_transient(raised.value)


def test_storage_with_leases() -> None:
    kinds = {
        "file": True,
        "memory": True,
        "s3": True,
        "gs": True,
        "abfs": True,
        "az": True,
        "sftp": False,
        "hdfs": False,
        "http": False,
    }
    found = {kind: creates_if_absent(type("Kind", (), {"protocol": (kind, "other")})()) for kind in kinds}
    assert found == kinds


def test_a_folder_holds_itself_and_what_is_in_it_by_whatever_name(tmp_path: Path) -> None:
    (tmp_path / "a" / "in").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    a, inside, link = (Folder(str(tmp_path / name)) for name in ("a", "a/in", "link/in/new"))
    assert a.holds(a) and a.holds(inside) and a.holds(link) and Folder(f"file://{tmp_path}/a").holds(link)
    assert not inside.holds(a) and not a.holds(Folder(str(tmp_path / "ab"))) and Folder("/").holds(a)
    memory = Folder(f"memory://{tmp_path}/a")
    assert memory.holds(Folder(f"memory://{tmp_path}/a/in/")) and not memory.holds(inside) and not a.holds(memory)
