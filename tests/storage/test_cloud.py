"""Google's and Azure's storage, as their fsspec clients (gcsfs 2026.10, adlfs 2026.8) behave: stood in for by fakes."""

from typing import Any, ClassVar

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from hybridiff.corpus import Corpus, verify
from hybridiff.errors import UsageError
from hybridiff.storage.folder import Folder
from hybridiff.storage.lease import LeaseLost, check_lease
from hybridiff.storage.publish import publish_bytes, publishing
from tests.corpus.corpora import record, write_shard
from tests.storage.leases import LEASE_S, Clock, leases


class _Object:
    """An object that is being written."""

    def __init__(self, fs: "_Cloud", path: str) -> None:
        self.fs, self.path, self.closed, self.parts = fs, path, False, bytearray()

    def write(self, data: bytes) -> int:
        self.parts += data
        return len(data)

    def close(self) -> None:
        """gcsfs finishes nothing here without autocommit; adlfs commits its blocks."""
        if not self.closed and self.fs.appears_at_close:
            self.fs.put(self.path, self.parts)
        self.closed = True

    def commit(self) -> None:
        """gcsfs finishes the upload here; adlfs inherits a method that does nothing."""
        if not self.fs.appears_at_close:
            self.fs.put(self.path, self.parts)

    def discard(self) -> None:
        self.parts.clear()


class _Cloud(MemoryFileSystem):
    """Object storage: no renaming, no directories, objects that are created only if absent by ``pipe_file(mode="create")``."""

    cachable = False
    appears_at_close = False
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.partition("://")[2].lstrip("/") if "://" in path else "/" + path.lstrip("/")

    def put(self, path: str, data: bytes | bytearray) -> None:
        with super().open(path, "wb") as handle:
            handle.write(bytes(data))

    def open(self, path: str, mode: str = "rb", block_size: Any = None, autocommit: bool = True, **given: Any) -> Any:
        if mode == "rb":
            return super().open(path, mode, **given)
        assert mode == "wb" and not autocommit, "an upload that can be discarded"
        return _Object(self, path)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        if mode == "create" and self.exists(path):  # ifGenerationMatch=0, or If-None-Match: *
            raise FileExistsError(path)
        self.put(path, value)

    def mv(self, *_: Any, **__: Any) -> None:
        pytest.fail("objects can't be renamed")

    def cp_file(self, *_: Any, **__: Any) -> None:
        pytest.fail("objects are not copied")


class _Google(_Cloud):
    protocol = ("gs", "gcs")


class _Azure(_Cloud):
    protocol = ("abfs", "az", "abfss")
    appears_at_close = True


@pytest.fixture(params=[_Google, _Azure])
def corpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    kind = request.param
    monkeypatch.setattr(kind, "store", {})
    monkeypatch.setattr(kind, "pseudo_dirs", [""])
    monkeypatch.setattr("hybridiff.storage.folder.locate", lambda url: (kind(), "/bucket/corpus"))
    return Corpus(f"{kind.protocol[0]}://bucket/corpus")


def test_a_corpus_is_made_and_verified_there(corpus: Corpus) -> None:
    corpus.start_run(record())
    for index in range(3):
        write_shard(corpus, index)
    assert verify(corpus).whole and corpus.committed() == {0, 1, 2}


def test_an_object_appears_whole_or_not_at_all(corpus: Corpus) -> None:
    with pytest.raises(OSError, match="given up"), publishing(corpus.fs, corpus.path("large")) as handle:
        handle.write(bytes(1 << 20))
        raise OSError("given up")
    assert corpus.names("") == []
    with publishing(corpus.fs, corpus.path("large")) as handle:
        handle.write(bytes(1 << 20))
        assert corpus.names("") == []
    assert len(corpus.read("large")) == 1 << 20


def test_of_two_that_create_an_object_the_first_stays(corpus: Corpus) -> None:
    corpus.publish("file", b"first", exclusive=True)
    with pytest.raises(FileExistsError):
        corpus.publish("file", b"second", exclusive=True)
    assert corpus.read("file") == b"first"


def test_an_object_that_was_created_though_the_answer_was_lost_is_ones_own(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = type(corpus.fs).pipe_file

    def retried(self: Any, path: str, value: bytes, **given: Any) -> None:
        create(self, path, value, **given)
        create(self, path, value, **given)  # the client sends it again, as it has heard nothing

    monkeypatch.setattr(type(corpus.fs), "pipe_file", retried)
    assert publish_bytes(corpus.fs, corpus.path("file"), b"content", exclusive=True).closed


def test_leases_there(corpus: Corpus) -> None:
    clock = Clock()
    with pytest.raises(UsageError, match=r"data\.lease_s is 60 and .*; allowed: 120 to 1200 seconds there"):
        check_lease(corpus, LEASE_S)
    short = type("Short", (Folder,), {"retry_budget_s": 0.0})
    corpus.__class__ = type("ShortCorpus", (short, Corpus), {})
    one, two = leases(corpus, "one", clock), leases(corpus, "two", clock)
    assert one.acquire("a") and not two.acquire("a")
    clock.sleep(0.9 * LEASE_S)
    one.renew()
    clock.sleep(0.9 * LEASE_S)
    assert not two.acquire("a")
    assert two.acquire_next(lambda _: ["a"]) == "a" and corpus.names("leases") == ["a.0.json", "a.1.json"]
    with pytest.raises(LeaseLost):
        one.require("a")
    two.release("a")
    assert corpus.names("leases") == []
