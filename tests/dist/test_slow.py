"""Slow groups and slow storage hold others up, and no more: nobody times out, and the output stays theirs."""

from pathlib import Path

import pytest

from tests.dist.processes import kill, run, start
from tests.dist.test_failed_rows import SOUND, arguments
from tests.dist.test_signals import committed, until

FAULTY = "tests/dist/faulty_generate.py"


@pytest.mark.timeout(300)
def test_a_group_that_has_finished_waits_for_a_slow_one_and_keeps_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = tmp_path / "go"
    monkeypatch.setenv("HYBRIDIFF_TEST_GO", str(go))
    prompts = [SOUND, SOUND, f"{SOUND} poison wait", SOUND]
    given = arguments(tmp_path, 1, prompts, **{"output.shard_size": 2, "parallel.timeout_s": 2})
    process = start(2, FAULTY, *given)
    try:
        until(process, lambda: committed(tmp_path) == ["00000"])
        second = run(1, FAULTY, *given)
        assert second.code == 2 and "is being written by process" in second.output, second.output
        assert committed(tmp_path) == ["00000"] and process.poll() is None
        go.touch()
        output = process.communicate(timeout=100)[0]
    finally:
        kill(process)
    assert process.returncode == 0, output
    assert committed(tmp_path) == ["00000", "00001"] and "images:        4" in output and "shards left" not in output


@pytest.mark.timeout(200)
def test_storage_that_is_slow_for_longer_than_the_group_would_wait_holds_a_pair_up(tmp_path: Path) -> None:
    prompts = [f"{SOUND} poison store", *[SOUND] * 7]
    given = arguments(tmp_path, 2, prompts, **{"data.batch_size": 1, "parallel.timeout_s": 4})
    run(2, FAULTY, *given).succeeded()
    assert committed(tmp_path) == ["00000"]
