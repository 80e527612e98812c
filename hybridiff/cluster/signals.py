"""Signals that ask a run to end: a flag, which groups look at between batches; before and after these the end of the process."""

import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

from hybridiff.cluster.exit_codes import AGAIN, INTERRUPTED

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
ANOTHER_RANK = "a signal to another rank"
LAUNCHER = "the end of its launcher"
LOOK_S = 0.2
BEFORE_IMAGES = "before this process generated an image"
RESUMABLE = "what is committed stays, and the same command again does the rest"
_LOG = logging.getLogger(__name__)


class ExitSignals:
    """Ends the process at SIGTERM or SIGUSR1 with exit code 85, at SIGINT with 130, and says so in one line.

    Enter it while libraries are loaded, and until nothing is left to do; ``StopSignals`` comes between, while there are shards to
    finish. Its handlers stay when it is left: a launcher repeats its signal to ranks that are about to end.

    Args:
        report: prints one line.

    Attributes:
        words: what holds if a signal ends the process now; None once it is ending anyway, and a signal changes nothing.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self.words: str | None = f" {BEFORE_IMAGES}"
        self._code: int | None = None  # with which a signal ends the process

    def __enter__(self) -> "ExitSignals":
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._handle)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not ignored, as in the background
            signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.words = None
        if isinstance(error, KeyboardInterrupt):
            self._code = INTERRUPTED
        elif error is None or not isinstance(error, Exception):
            return
        if self._code == INTERRUPTED:
            self._report(f"interrupted; {RESUMABLE}")
        if self._code is not None:  # also where a library that was being loaded has made another error of the signal's
            raise SystemExit(self._code) from error

    def _handle(self, number: int, frame: FrameType | None) -> None:
        words, self.words = self.words, None
        if words is not None:
            self._report(f"stopped by {signal.Signals(number).name}{words}")
            self._code = AGAIN
            sys.exit(AGAIN)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._code = INTERRUPTED
        raise KeyboardInterrupt


class StopSignals:
    """Handles SIGTERM, SIGINT and SIGUSR1 while it is entered; a second SIGINT raises ``KeyboardInterrupt``, a third kills.

    Args:
        launcher: the process whose end counts as a signal, this one's parent; None if there is none.

    Attributes:
        generating: whether all ranks have connected and the flag is looked at between batches. Before, a signal ends this
            process: ranks that wait for others look at nothing, for half an hour.
        release: what is done before such an end.
        received: the first request to end, a signal's name; None before.
        since: when that came, by ``time.monotonic``.
    """

    def __init__(self, launcher: int | None = None) -> None:
        self._launcher = launcher
        self._interrupted = False  # by a SIGINT that was handled, which the watcher may have seen before
        self.received: str | None = None
        self.since = 0.0
        self.generating = False
        self.release: Callable[[], None] = lambda: None
        self._left = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="signals before the first batch", daemon=True)
        # A pipe, into which signals are written also while the main thread waits in a library and runs no handlers.
        self._reading, self._writing = -1, -1
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        self._before = {number: signal.getsignal(number) for number in STOPPING}
        self.install()
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._watcher.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._left.set()
        self._watcher.join()
        signal.set_wakeup_fd(-1)
        for end in (self._reading, self._writing):
            os.close(end)
        ending = self._launcher is not None and self.received is not None
        for number, handler in self._before.items():  # a launcher repeats its signal to ranks that are about to end
            signal.signal(number, signal.SIG_IGN if ending else handler)

    def ask(self, why: str) -> None:
        """Asks for the run's end, as a signal does."""
        if self.received is None:
            self.received, self.since = why, time.monotonic()

    def asked(self) -> bool:
        """Whether the run is to end."""
        if self.received is None and self._launcher is not None and os.getppid() != self._launcher:
            self.ask(LAUNCHER)
        return self.received is not None

    def sleep(self, seconds: float) -> None:
        """Waits so many seconds, or less if the run is to end."""
        until = time.monotonic() + seconds
        while not self.asked() and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, LOOK_S))

    def install(self) -> None:
        """Sets the handlers, also after a library has set others."""
        for number in STOPPING:
            signal.signal(number, self._handle)

    def _watch(self) -> None:
        while not self.generating and not self._left.is_set():
            readable = select.select([self._reading], [], [], LOOK_S)[0]
            for number in os.read(self._reading, 64) if readable else b"":
                if number in STOPPING:
                    self.ask(signal.Signals(number).name)
            if self.asked() and not self.generating and not self._left.is_set():
                with suppress(Exception):
                    self.release()
                _LOG.warning("stopped by %s %s", self.received, BEFORE_IMAGES)
                os._exit(AGAIN)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            raise KeyboardInterrupt
        self._interrupted = self._interrupted or number == signal.SIGINT
        if self.received is None or number == signal.SIGINT:
            self.since = self.since or time.monotonic()
            self.received = signal.Signals(number).name
