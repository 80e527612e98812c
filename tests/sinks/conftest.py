"""Places to put a corpus: a local directory and a remote file system."""

import uuid
from pathlib import Path

import pytest


@pytest.fixture(params=["local", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place, once on the local disk and once in fsspec's memory file system."""
    return str(tmp_path / "corpus [1]") if request.param == "local" else f"memory://{uuid.uuid4().hex}/corpus [1]"
