"""A run that is asked to end: what is open is finished or dropped in time, and the exit code says to run it again."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.dist.processes import descendants, finish, kill, run, start

ROWS, SHARD = 24, 6


def arguments(directory: Path, group_size: int, *more: str) -> list[str]:
    prompts = directory / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": "a red circle", "key": f"k{i:02d}"}) + "\n" for i in range(ROWS)))
    given = {
        "data.prompts": prompts,
        "data.batch_size": 2,
        "sampling.steps": 12,
        "model.path": "shapes-xl",
        "output.url": directory / "corpus",
        "output.shard_size": SHARD,
        "parallel.group_size": group_size,
        "trainer.accelerator": "cpu",
        "trainer.logger": False,
        "trainer.enable_progress_bar": False,
    }
    return ["jobs/generate.py", *(f"--{name}={value}" for name, value in given.items()), *more]


@contextmanager
def running(ranks: int, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = start(ranks, *arguments)
    try:
        yield process
    finally:
        kill(process)


def until(process: subprocess.Popen[str], found: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not found():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.01)


def committed(directory: Path) -> list[str]:
    return sorted(path.stem for path in (directory / "corpus" / "commits").glob("*.json"))


def leftovers(directory: Path) -> list[str]:
    return [path.name for path in directory.rglob("*.tmp")]


def workers(process: subprocess.Popen[str]) -> list[int]:
    return [pid for pid in descendants(process.pid) if b"generate.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_one_rank_finishes_its_open_shard_and_says_run_me_again(number: int, tmp_path: Path) -> None:
    with running(1, *arguments(tmp_path, 1)) as process:
        until(process, lambda: list((tmp_path / "corpus").glob("images/.00001.tar.*.tmp")))
        process.send_signal(number)
        output = finish(process)
    assert process.returncode == 85, output
    assert f"stopped by {signal.Signals(number).name}; what is committed stays" in output and "shards left:   2" in output
    assert committed(tmp_path) == ["00000", "00001"] and leftovers(tmp_path) == []


@pytest.mark.timeout(400)
def test_without_grace_the_open_shard_is_dropped_and_made_by_the_next_run(tmp_path: Path) -> None:
    given = arguments(tmp_path, 1, "--output.grace_s=0")
    with running(1, *given) as process:
        until(process, lambda: list((tmp_path / "corpus").glob("images/.00001.tar.*.tmp")))
        process.send_signal(signal.SIGINT)
        output = finish(process)
    assert process.returncode == 85, output
    assert committed(tmp_path) == ["00000"] and leftovers(tmp_path) == []
    run(1, *given).succeeded()
    assert len(committed(tmp_path)) == ROWS // SHARD


@pytest.mark.timeout(200)
def test_a_second_ctrl_c_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRIDIFF_TEST_GO", str(tmp_path / "go"))
    _, *given = arguments(tmp_path, 1, "--sampling.steps=500")  # the first batch takes much longer than the test
    with running(1, "tests/dist/faulty_generate.py", *given) as process:
        until(process, (tmp_path / "go.begun").exists)
        process.send_signal(signal.SIGINT)
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        output = finish(process)
    assert process.returncode == 130, output
    assert "generate: interrupted; what is committed stays" in output
    assert committed(tmp_path) == [] and leftovers(tmp_path) == []


@pytest.mark.timeout(200)
def test_a_pair_that_lightning_started_stops_together(tmp_path: Path) -> None:
    with running(1, *arguments(tmp_path, 2, "--trainer.devices=2")) as process:
        until(process, lambda: list((tmp_path / "corpus").glob("images/.00001.tar.*.tmp")))
        process.send_signal(signal.SIGTERM)  # to the first rank alone
        output = finish(process)
    assert process.returncode == 85, output
    assert committed(tmp_path) == ["00000", "00001"] and leftovers(tmp_path) == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("to", ["a rank", "torchrun"])
def test_a_pair_under_torchrun_stops_together(to: str, tmp_path: Path) -> None:
    with running(2, *arguments(tmp_path, 2)) as process:
        until(process, lambda: list((tmp_path / "corpus").glob("images/.00001.tar.*.tmp")))
        if to == "a rank":
            os.kill(workers(process)[-1], signal.SIGUSR1)
        else:
            process.send_signal(signal.SIGTERM)
        output = finish(process)
    assert process.returncode != 0
    assert "stopped by " in output and ("exitcode  : 85" in output or to == "torchrun"), output
    assert committed(tmp_path) == ["00000", "00001"] and leftovers(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_while_the_run_is_prepared_says_run_me_again(tmp_path: Path, number: signal.Signals) -> None:
    with running(1, *arguments(tmp_path, 1)) as process:
        until(process, lambda: handles(process.pid, number))
        process.send_signal(number)
        output = finish(process)
    assert process.returncode == 85, output
    assert f"stopped by {signal.Signals(number).name} before this process generated an image\n" in output
    assert "Traceback" not in output and not (tmp_path / "corpus").exists()


HELD_CARD = """
import sys, time
from pathlib import Path
from hybridiff import cli
from hybridiff.runner import summary

def hold(corpus):
    Path(sys.argv[1]).touch()
    time.sleep(60)

assert summary.write_card
summary.write_card = hold
cli.end(cli.main(["generate", *sys.argv[2:]]))
"""


@pytest.mark.timeout(200)
def test_a_signal_while_the_card_is_written_is_reported_truly_and_the_next_run_writes_it(tmp_path: Path) -> None:
    given = [*arguments(tmp_path, 1, "--sampling.steps=2")[1:]]
    (tmp_path / "held.py").write_text(HELD_CARD)
    with running(1, str(tmp_path / "held.py"), str(tmp_path / "finishing"), *given) as process:
        until(process, (tmp_path / "finishing").exists)
        process.send_signal(signal.SIGTERM)
        output = finish(process)
    assert process.returncode == 85, output
    said = [line for line in output.splitlines() if "stopped" in line]
    assert said == ["generate: stopped by SIGTERM; what is committed stays, and the same command again does the rest"]
    assert len(committed(tmp_path)) == ROWS // SHARD and not (tmp_path / "corpus" / "README.md").exists()
    run(1, "jobs/generate.py", *given).succeeded()
    assert (tmp_path / "corpus" / "README.md").exists()


def handles(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)


@pytest.mark.timeout(300)
def test_a_rank_that_falls_silent_ends_its_peer_after_the_timeout(tmp_path: Path) -> None:
    """And the peer's process, which waits for nothing of the silent one at its end; torchrun then kills that within 30 s."""
    with running(2, *arguments(tmp_path, 2, "--parallel.timeout_s=5")) as process:
        until(process, lambda: committed(tmp_path))
        silent = next(pid for pid in workers(process) if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes())
        os.kill(silent, signal.SIGSTOP)
        output = finish(process, 120)
    assert process.returncode == 1, output
    assert re.search(r"PeerLost: rank 1 of the group did not answer, after 5\.\d s", output), output
    assert leftovers(tmp_path) == []
