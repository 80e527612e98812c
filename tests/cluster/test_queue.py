"""What SLURM's queue says of whoever holds a corpus."""

import os
from pathlib import Path

import pytest

from hybridiff.cluster.queue import is_over
from hybridiff.corpus.holder import Holder


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
    assert is_over(Holder.here("7", cluster="big"), "big") is over
    assert not is_over(Holder.here("7", cluster="big"), "another")
    assert not is_over(Holder.here("7", cluster="big"), None)
    assert not is_over(Holder.here("7"), "big") and not is_over(Holder.here("7"), None)


def test_without_squeue_nobody_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not is_over(Holder.here("7", cluster="big"), "big")
