"""What every test gets: one thread, and a check that it leaves the process as it found it."""

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.optional import needs
from tests.services.proxy import FaultyProxy
from tests.services.swift import CREDENTIALS, Swift, environment

if TYPE_CHECKING:
    from hybridiff.corpus import Corpus

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # as in the job: otherwise the first import prints advice

LIBRARIES_OWN = (
    "PYTEST_",
    "PYTORCH_",
    "KMP_",
    "TORCHINDUCTOR_",
    "_TORCHINDUCTOR_",
    "TRITON_",
    "PYTORCH_NVML_",
)  # variables that libraries set for themselves on import
GRACE_S = 2.0  # for threads that are about to end
SLOW_FOLDER = Path(__file__).parent / "dist"  # starts processes
SLOW_FIXTURES = {"swift", "slurm"}  # servers


@pytest.hookimpl(tryfirst=True)  # before -m chooses among the tests
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what is slow by its folder or a fixture, and skips what needs a GPU where there is none."""
    for item in items:
        if SLOW_FOLDER in item.path.parents or SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch.cuda finds none"))


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swift]:
    """A real S3 server; skips, but never in CI, where it cannot be installed."""
    needs("s3fs", "s3")
    try:
        binaries = environment()
    except (subprocess.SubprocessError, OSError) as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"OpenStack Swift cannot be installed here: {error}")
    server = Swift(tmp_path_factory.mktemp("swift"), binaries)
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=["local", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place, once on the local disk and once in fsspec's memory file system."""
    return str(tmp_path / "corpus [1]") if request.param == "local" else f"memory://{uuid.uuid4().hex}/corpus [1]"


@pytest.fixture
def proxy(swift: Swift, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """The S3 server as this test's environment names it."""
    from hybridiff.storage.s3 import RetryingS3

    with FaultyProxy(swift.url) as proxy:
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": proxy.url}.items():
            monkeypatch.setenv(name, value)
        RetryingS3.clear_instance_cache()
        yield proxy
        RetryingS3.clear_instance_cache()


@pytest.fixture
def corpus(proxy: FaultyProxy, request: pytest.FixtureRequest) -> "Corpus":
    """A corpus in a bucket of its own."""
    from hybridiff.corpus import Corpus

    name = f"{uuid.uuid4().hex[:8]}-" + "".join(c if c.isalnum() else "-" for c in request.node.name.lower())[-40:].strip("-")
    corpus = Corpus(f"s3://{name}/corpus")
    corpus.fs.mkdir(name)
    return corpus


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """Fails a test that leaves threads, environment variables or a process group behind."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    environment, threads = dict(os.environ), set(threading.enumerate())
    yield
    left = [*_restore_environment(environment), *_running(threads), *_process_group()]
    assert not left, f"the test left behind: {', '.join(left)}"


def _restore_environment(before: dict[str, str]) -> list[str]:
    changed = [n for n in {*before, *os.environ} if before.get(n) != os.environ.get(n) and not n.startswith(LIBRARIES_OWN)]
    for name in changed:
        if name in before:
            os.environ[name] = before[name]
        else:
            del os.environ[name]
    return [f"${name}" for name in sorted(changed)]


def _running(before: set[threading.Thread]) -> list[str]:
    deadline = time.monotonic() + GRACE_S
    # asyncio keeps its resolver threads for as long as the event loop of fsspec lives.
    new = [t for t in threading.enumerate() if t not in before and not t.daemon and not t.name.startswith("asyncio_")]
    for thread in new:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [f"thread {thread.name}" for thread in new if thread.is_alive()]


def _process_group() -> list[str]:
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return []
    distributed.destroy_process_group()
    return ["a process group of torch.distributed"]
