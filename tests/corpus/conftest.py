"""Places to put a corpus: a local directory, a remote file system, and a real S3 server behind a proxy that can break it."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybridiff.corpus import Corpus
from tests.corpus.leases import Clock
from tests.services.proxy import FaultyProxy
from tests.services.swift import CREDENTIALS, Swift


@pytest.fixture(params=["local", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place, once on the local disk and once in fsspec's memory file system."""
    return str(tmp_path / "corpus [1]") if request.param == "local" else f"memory://{uuid.uuid4().hex}/corpus [1]"


@pytest.fixture
def proxy(swift: Swift, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """The S3 server as this test's environment names it."""
    from hybridiff.storage.s3 import PatientS3

    with FaultyProxy(swift.url) as proxy:
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": proxy.url}.items():
            monkeypatch.setenv(name, value)
        PatientS3.clear_instance_cache()
        yield proxy
        PatientS3.clear_instance_cache()


@pytest.fixture
def corpus(proxy: FaultyProxy, request: pytest.FixtureRequest) -> Corpus:
    """A corpus in a bucket of its own."""
    name = f"{uuid.uuid4().hex[:8]}-" + "".join(c if c.isalnum() else "-" for c in request.node.name.lower())[-40:].strip("-")
    corpus = Corpus(f"s3://{name}/corpus")
    corpus.fs.mkdir(name)
    return corpus


@pytest.fixture
def clock() -> Clock:
    return Clock()
