"""Signals that ask a run to end."""

import ctypes
import os
import signal
import time
from pathlib import Path

import pytest

from hybridiff.cluster.signals import STOPPING, StopSignals


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_sets_a_flag_and_handlers_are_there_for_the_run_only(number: signal.Signals) -> None:
    before = [signal.getsignal(one) for one in STOPPING]
    with StopSignals() as signals:
        signals.drawing = True
        assert signals.received is None
        os.kill(os.getpid(), number)
        assert signals.received == number.name and time.monotonic() - signals.since < 5
    assert [signal.getsignal(one) for one in STOPPING] == before


def test_a_second_ctrl_c_interrupts_but_not_the_first_after_a_sigterm() -> None:
    with StopSignals() as signals:
        signals.drawing = True
        os.kill(os.getpid(), signal.SIGTERM)
        since = signals.since
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == "SIGINT" and signals.since == since
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_ends_a_rank_that_waits_for_others_before_anything_is_drawn(tmp_path: Path, number: signal.Signals) -> None:
    ready, released = tmp_path / "ready", tmp_path / "released"
    rank = os.fork()
    if not rank:
        with StopSignals() as signals:
            signals.release = released.touch
            ready.touch()
            mutex = ctypes.create_string_buffer(64)
            for _ in range(2):  # the second time it waits as a library does, in which handlers of Python's don't run
                ctypes.CDLL(None).pthread_mutex_lock(mutex)
        os._exit(0)
    deadline = time.monotonic() + 20
    while not ready.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(rank, number)
    assert os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) == 85
    assert released.exists()


@pytest.mark.parametrize("drawing", [False, True])
def test_the_end_of_its_launcher_ends_a_rank_that_has_drawn_nothing(tmp_path: Path, drawing: bool) -> None:
    reading, writing = os.pipe()
    launcher = os.fork()
    if not launcher:
        rank = os.fork()
        if not rank:
            live_on(os.getppid(), drawing, tmp_path / "lived on")
        os.write(writing, b"%d\n" % rank)
        time.sleep(1.0)
        os._exit(0)
    os.waitpid(launcher, 0)
    with open(reading) as numbers:
        rank = int(numbers.readline())
    deadline = time.monotonic() + 20
    while runs(rank) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not runs(rank)
    assert (tmp_path / "lived on").exists() == drawing


def live_on(launcher: int, drawing: bool, told: Path) -> None:
    """A rank for some seconds, which says if it got so far."""
    with StopSignals(launcher) as signals:
        signals.drawing = drawing
        time.sleep(4.0)
        if signals.asked():
            told.touch()
    os._exit(0)


def runs(pid: int) -> bool:
    """Whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
