"""Slow groups and slow storage hold others up, and no more: nobody times out, and the output stays theirs."""

import time
from pathlib import Path

import pytest

from tests.dist.processes import finish, kill, run, start
from tests.dist.test_failed_rows import SOUND, arguments
from tests.dist.test_signals import committed, until, workers

FAULTY = "tests/dist/faulty_generate.py"
END_S = 3.0


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of a run of two groups, of which the second waits until the file "go" is there."""
    monkeypatch.setenv("HYBRIDIFF_TEST_GO", str(tmp_path / "go"))
    prompts = [SOUND, SOUND, f"{SOUND} poison wait", SOUND]
    return arguments(tmp_path, 1, prompts, **{"output.shard_size": 2, "parallel.timeout_s": 2})


def leased(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "corpus").glob("leases/*.json"))


@pytest.mark.timeout(300)
def test_a_group_that_has_finished_waits_for_a_slow_one_and_so_does_another_run_until_it_knows_it_alive(
    tmp_path: Path, held: list[str]
) -> None:
    process = start(2, FAULTY, *held, "--data.lease_s=3")
    try:
        until(process, lambda: committed(tmp_path) == ["00000"])
        second = run(1, FAULTY, *held, "--data.lease_s=3").succeeded()
        assert "shards left:   1, by other groups or the next run" in second.output, second.output
        time.sleep(2 * END_S)
        assert committed(tmp_path) == ["00000"] and len(workers(process)) == 2 and leased(tmp_path) == ["00001.0.json"]
        (tmp_path / "go").touch()
        output = finish(process)
    finally:
        kill(process)
    assert process.returncode == 0, output
    assert committed(tmp_path) == ["00000", "00001"] and "images:        4" in output and leased(tmp_path) == []


@pytest.mark.timeout(300)
def test_it_would_not_wait_so_long_if_its_own_timeout_were_short(
    tmp_path: Path, held: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the test above: it waits longer than this, and the timeout that is shortened here is the one that it needs."""
    monkeypatch.setenv("HYBRIDIFF_TEST_END_S", str(END_S))
    process = start(2, FAULTY, *held)
    try:
        until(process, lambda: committed(tmp_path) == ["00000"])
        until(process, lambda: len(workers(process)) == 1)
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
