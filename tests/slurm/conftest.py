"""One SLURM for all tests here, started by the first that needs it; skipped with a reason where there can be none."""

import os
from collections.abc import Iterator

import pytest

from tests.services.slurm import Slurm, missing
from tests.slurm.jobs import Jobs


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    why = missing()
    assert why is None or not os.environ.get("CI"), f"CI runs SLURM, but {why}"
    if why is not None:
        pytest.skip(why)
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def jobs(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    """Jobs on it; what a test leaves running is cancelled."""
    mine = Jobs(slurm, tmp_path_factory.mktemp("job"))
    try:
        yield mine
    finally:
        mine.cancel()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Shows all logs of a failed test's jobs."""
    report = yield
    for jobs in getattr(item, "funcargs", {}).values():
        if isinstance(jobs, Jobs) and report.when == "call" and report.failed:  # type: ignore[attr-defined]
            report.sections.append(("SLURM jobs", jobs.logs()))  # type: ignore[attr-defined]
    return report
