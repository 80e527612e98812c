"""Slow groups and slow storage hold others up, and no more: nobody times out, and the output stays theirs."""

import time
from pathlib import Path

import pytest

from tests.dist.processes import kill, run, start
from tests.dist.test_failed_rows import SOUND, arguments
from tests.dist.test_signals import committed, until

FAULTY = "tests/dist/faulty_generate.py"
END_S = 3.0


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of a run of two groups, of which the second waits until the file "go" is there."""
    monkeypatch.setenv("HYBRIDIFF_TEST_GO", str(tmp_path / "go"))
    prompts = [SOUND, SOUND, f"{SOUND} poison wait", SOUND]
    return arguments(tmp_path, 1, prompts, **{"output.shard_size": 2, "parallel.timeout_s": 2})


def locked(directory: Path) -> bool:
    return list((directory / "corpus").glob("lock/*.json")) != []


@pytest.mark.timeout(300)
def test_a_group_that_has_finished_waits_for_a_slow_one_and_keeps_the_lock(tmp_path: Path, held: list[str]) -> None:
    process = start(2, FAULTY, *held)
    try:
        until(process, lambda: committed(tmp_path) == ["00000"])
        second = run(1, FAULTY, *held)
        assert second.code == 2 and "is being written by process" in second.output, second.output
        time.sleep(2 * END_S)
        assert committed(tmp_path) == ["00000"] and process.poll() is None and locked(tmp_path)
        (tmp_path / "go").touch()
        output = process.communicate(timeout=100)[0]
    finally:
        kill(process)
    assert process.returncode == 0, output
    assert committed(tmp_path) == ["00000", "00001"] and "images:        4" in output and "shards left" not in output


@pytest.mark.timeout(300)
def test_it_would_not_wait_so_long_if_its_own_patience_were_short(
    tmp_path: Path, held: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the test above: it waits longer than this, and the patience that is shortened here is the one that it needs."""
    monkeypatch.setenv("HYBRIDIFF_TEST_END_S", str(END_S))
    process = start(2, FAULTY, *held)
    try:
        until(process, lambda: committed(tmp_path) == ["00000"])
        assert locked(tmp_path)
        until(process, lambda: not locked(tmp_path))
    finally:
        kill(process)
        process.communicate()
    assert committed(tmp_path) == ["00000"]


@pytest.mark.timeout(200)
def test_storage_that_is_slow_for_longer_than_the_group_would_wait_holds_a_pair_up(tmp_path: Path) -> None:
    prompts = [f"{SOUND} poison store", *[SOUND] * 7]
    given = arguments(tmp_path, 2, prompts, **{"data.batch_size": 1, "parallel.timeout_s": 4})
    run(2, FAULTY, *given).succeeded()
    assert committed(tmp_path) == ["00000"]
