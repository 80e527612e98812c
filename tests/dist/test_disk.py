"""A disk that fails: full, read-only, or with the output gone. The run ends with a clear word, and nothing false is committed."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybridiff.corpus.record import sealed
from tests.dist.processes import finish, kill, run, start
from tests.dist.test_signals import arguments, committed, until

SMALL = "160k"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of little size; skips, but never in CI, where none can be mounted."""
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", mount], capture_output=True, text=True)
    assert made.returncode == 0 or not os.environ.get("CI"), f"CI mounts a small file system: {made.stderr.strip()}"
    if made.returncode:
        pytest.skip(f"needs the right to mount a small file system: {made.stderr.strip()}")
    yield mount
    subprocess.run(["umount", "-l", mount], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


def report(url: Path) -> dict[str, int]:
    found: dict[str, int] = json.loads(run(1, "jobs/verify.py", str(url)).output.splitlines()[-1])
    return found


@pytest.mark.timeout(400)
def test_a_full_disk_ends_the_run_and_what_is_committed_is_whole(disk: Path, tmp_path: Path) -> None:
    given = [*arguments(tmp_path, 1), f"--output.url={disk / 'corpus'}"]
    finished = run(1, *given)
    assert finished.code == 1
    assert "generate: error: " in finished.output and "No space left on device" in finished.output
    assert str(disk / "corpus") in finished.output.partition("No space left on device")[2], "the file is named"
    assert "Traceback" not in finished.output
    found = report(disk / "corpus")
    assert 1 <= found["shards"] < 4 and found["corrupt"] == 0
    assert list(disk.rglob("*.tmp")) == []
    remount(disk, "size=10m")
    run(1, *given).succeeded()
    assert report(disk / "corpus") == {
        "shards": 4,
        "rows": 24,
        "ok": 24,
        "failed": 0,
        "missing": 0,
        "corrupt": 0,
        "unreadable": 0,
    }


@pytest.mark.timeout(200)
def test_a_read_only_output_is_refused(disk: Path, tmp_path: Path) -> None:
    remount(disk, "ro")
    finished = run(1, *arguments(tmp_path, 1), f"--output.url={disk / 'corpus'}")
    assert finished.code == 2
    assert f"output.url is {disk / 'corpus'}: it is not writable" in finished.output


@pytest.mark.timeout(200)
def test_an_output_removed_during_the_run_is_not_begun_anew(tmp_path: Path) -> None:
    process = start(1, *arguments(tmp_path, 1))
    try:
        until(process, lambda: list((tmp_path / "corpus").glob("images/.00001.tar.*.tmp")))
        shutil.rmtree(tmp_path / "corpus", ignore_errors=True)
        shutil.rmtree(tmp_path / "corpus", ignore_errors=True)  # what appeared meanwhile
        output = finish(process)
    finally:
        kill(process)
    assert process.returncode == 1, output
    assert "was removed during the run" in output and "Traceback" not in output
    assert committed(tmp_path) == [] and not (tmp_path / "corpus" / "run.json").exists()


@pytest.mark.timeout(200)
def test_markers_removed_during_the_run_are_no_success(tmp_path: Path) -> None:
    process = start(1, *arguments(tmp_path, 1))
    try:
        until(process, lambda: list((tmp_path / "corpus").glob("images/.00002.tar.*.tmp")))
        shutil.rmtree(tmp_path / "corpus" / "commits", ignore_errors=True)
        output = finish(process)
    finally:
        kill(process)
    assert process.returncode == 1 and "shards left:   2" in output, output


@pytest.mark.timeout(200)
def test_a_run_whose_record_is_replaced_by_another_configuration_commits_nothing(tmp_path: Path) -> None:
    process = start(1, *arguments(tmp_path, 1))
    record = tmp_path / "corpus" / "run.json"
    try:
        until(process, lambda: list((tmp_path / "corpus").glob("images/.00000.tar.*.tmp")))
        replaced = json.loads(record.read_text()) | {"fingerprint": "0" * 64}
        record.write_text(json.dumps(sealed(replaced)))
        output = finish(process)
    finally:
        kill(process)
    assert process.returncode == 1 and "is a run's of another configuration by now" in output, output
    assert committed(tmp_path) == [] and "Traceback" not in output
