"""What SLURM's queue reports of the owners of leases."""

import os
from pathlib import Path

import pytest

from hybridiff.cluster.queue import job_ended
from hybridiff.storage.lease import Owner


@pytest.mark.parametrize(
    ("squeue", "over"),
    [
        ("echo CANCELLED", True),
        ("echo TIMEOUT; echo COMPLETED", True),
        ("echo COMPLETING", False),  # its processes may still be there
        ("echo RUNNING", False),
        ("echo PENDING", False),  # requeued, and goes on itself
        ("echo NODE_FAIL", False),  # nobody knows what still runs there
        ("echo", False),
        ("echo 'Invalid job id specified' >&2; exit 1", False),  # too long ago to be known
    ],
)
def test_a_job_is_over_when_slurm_says_so(squeue: str, over: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "squeue"
    program.write_text(f'#!/bin/sh\n[ "$2" = --jobs=7 ] || exit 1\n{squeue}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "big")
    assert job_ended(Owner.here("7", cluster="big")) is over
    assert not job_ended(Owner.here("7", cluster="another")) and not job_ended(Owner.here("7")) and not job_ended(Owner.here())
    monkeypatch.delenv("SLURM_CLUSTER_NAME")
    assert not job_ended(Owner.here("7", cluster="big")) and not job_ended(Owner.here("7"))


def test_without_squeue_nobody_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "big")
    assert not job_ended(Owner.here("7", cluster="big"))
