"""Signals that ask a run to end."""

import ctypes
import importlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from hybridiff import cli
from hybridiff.cluster.signals import RESUMABLE, STOPPING, ExitSignals, StopSignals
from hybridiff.errors import UsageError

END_S = 60.0  # by which a process is there, or gone


@pytest.fixture
def own_handlers() -> Iterator[None]:
    """Restores the handlers."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_sets_a_flag_and_handlers_are_there_for_the_run_only(number: signal.Signals) -> None:
    before = [signal.getsignal(one) for one in STOPPING]
    with StopSignals() as signals:
        signals.generating = True
        assert signals.received is None
        sent = time.monotonic()
        os.kill(os.getpid(), number)
        assert signals.received == number.name and sent <= signals.since <= time.monotonic()
    assert [signal.getsignal(one) for one in STOPPING] == before


def test_a_second_ctrl_c_interrupts_but_not_the_first_after_a_sigterm() -> None:
    with StopSignals() as signals:
        signals.generating = True
        os.kill(os.getpid(), signal.SIGTERM)
        since = signals.since
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == "SIGINT" and signals.since == since
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_ctrl_c_that_the_watcher_has_seen_first_is_still_one() -> None:
    with StopSignals() as signals:
        signals.generating = True
        signals.ask("SIGINT")
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_ends_a_rank_that_waits_for_others_before_the_first_batch(tmp_path: Path, number: signal.Signals) -> None:
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
    deadline = time.monotonic() + END_S
    while not ready.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(rank, number)
    assert os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) == 85
    assert released.exists()


@pytest.mark.usefixtures("own_handlers")
def test_a_launcher_that_repeats_its_signal_changes_nothing() -> None:
    with StopSignals(os.getppid()) as signals:
        signals.generating = True
        os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    assert [signal.getsignal(number) for number in STOPPING] == [signal.SIG_IGN] * 3


@pytest.mark.usefixtures("own_handlers")
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (None, "stopped by SIGUSR1 before this process generated an image"),
        (f"; {RESUMABLE}", "stopped by SIGUSR1; what is committed stays, and the same command again does the rest"),
    ],
)
def test_before_and_after_the_batches_a_signal_ends_the_process_in_a_true_line(words: str | None, line: str) -> None:
    lines: list[str] = []
    with pytest.raises(SystemExit) as ended, ExitSignals(lines.append) as signals:
        signals.words = words or signals.words
        with StopSignals() as stop:
            stop.generating = True
        os.kill(os.getpid(), signal.SIGUSR1)
    assert ended.value.code == 85 and lines == [line]
    os.kill(os.getpid(), signal.SIGTERM)  # while it ends
    assert lines == [line]


@pytest.mark.usefixtures("own_handlers")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 85)])
@pytest.mark.parametrize("other", [RuntimeError("Failed to import x: initialization failed"), None])
def test_a_signal_is_what_ends_the_process_also_where_a_library_makes_another_error_of_it(
    number: signal.Signals, code: int, other: Exception | None
) -> None:
    lines: list[str] = []
    with pytest.raises(SystemExit) as ended, ExitSignals(lines.append):
        try:
            os.kill(os.getpid(), number)
        except BaseException as error:
            raise other or error from None
    assert ended.value.code == code and len(lines) == 1
    with pytest.raises(RuntimeError, match="of its own"), ExitSignals(lines.append):
        raise RuntimeError("of its own")
    assert len(lines) == 1


@pytest.mark.usefixtures("own_handlers")
def test_a_signal_while_a_run_ends_with_an_error_does_not_change_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a rank that reports its dead peer while their launcher signals it."""
    importlib.import_module("hybridiff.cli.generate")  # or it would keep the function that stands in for say
    said: list[str] = []

    def fail(*_: object, **__: object) -> None:
        raise UsageError("a mistake")

    def say(lines: list[str], where: object) -> None:
        said.extend(lines)
        os.kill(os.getpid(), signal.SIGTERM)

    given = SimpleNamespace(config=None, dry_run=True, only=None)
    monkeypatch.setattr("hybridiff.cli.config.parse", lambda _: given)
    monkeypatch.setattr("hybridiff.cli.local_paths.check_paths", lambda _: None)
    monkeypatch.setattr("hybridiff.runner.job.prepare", fail)
    monkeypatch.setattr("hybridiff.cli.say", say)
    assert cli.main(["generate", "--dry_run"]) == 2
    assert said == ["generate: error: a mistake"]


@pytest.mark.parametrize("generating", [False, True])
def test_the_end_of_its_launcher_ends_a_rank_before_the_first_batch(tmp_path: Path, generating: bool) -> None:
    reading, writing = os.pipe()
    launcher = os.fork()
    if not launcher:
        if not os.fork():
            live_on(os.getppid(), generating, writing, tmp_path / "lived on")
        signal.pause()
    with open(reading) as numbers:
        rank = int(numbers.readline())
    os.close(writing)
    os.kill(launcher, signal.SIGKILL)
    os.waitpid(launcher, 0)
    deadline = time.monotonic() + END_S
    while runs(rank) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not runs(rank)
    assert (tmp_path / "lived on").exists() == generating


def live_on(launcher: int, generating: bool, ready: int, asked: Path) -> None:
    """A rank until its launcher has ended, which then says if it got so far."""
    with StopSignals(launcher) as signals:
        signals.generating = generating
        os.write(ready, b"%d\n" % os.getpid())
        while os.getppid() == launcher:
            time.sleep(0.05)
        time.sleep(0.0 if generating else END_S)  # before the first batch, its end is not for it to choose
        if signals.asked():
            asked.touch()
    os._exit(0)


def runs(pid: int) -> bool:
    """Whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
