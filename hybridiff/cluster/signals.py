"""Signals that ask a run to end: they set a flag, and the groups look at it between batches."""

import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

from hybridiff.cluster.exit_codes import AGAIN

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
ANOTHER_RANK = "a signal to another rank"
LAUNCHER = "the end of its launcher"
ANOTHER_RUN = "another run, which has taken the output over"
LOOK_S = 0.2
_LOG = logging.getLogger(__name__)


class StopSignals:
    """Handles SIGTERM, SIGINT and SIGUSR1 while it is entered; a second SIGINT raises ``KeyboardInterrupt``, a third kills.

    Args:
        launcher: The process whose end counts as a signal, this one's parent; None if there is none.

    Attributes:
        drawing: Whether all ranks have come together, and batches begin, between which somebody looks. Before, a signal ends this
            process: ranks that wait for others hear nothing, for half an hour.
        release: What is done before such an end.
        received: What was asked for last, a signal's name; None if nothing was.
        since: When it first was, by ``time.monotonic``.
        taken_over: Whether the output is another run's by now, so that nothing more may be written.
    """

    def __init__(self, launcher: int | None = None) -> None:
        self._launcher = launcher
        self.received: str | None = None
        self.since = 0.0
        self.taken_over = False
        self.drawing = False
        self.release: Callable[[], None] = lambda: None
        self._left = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="signals before drawing", daemon=True)
        # A pipe, which hears of signals also while the main thread waits in a library and handles none.
        self._told, self._telling = -1, -1
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        self._before = {number: signal.getsignal(number) for number in STOPPING}
        self.install()
        self._told, self._telling = os.pipe()
        os.set_blocking(self._telling, False)
        signal.set_wakeup_fd(self._telling, warn_on_full_buffer=False)
        self._watcher.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._left.set()
        self._watcher.join()
        signal.set_wakeup_fd(-1)
        for end in (self._told, self._telling):
            os.close(end)
        ending = self._launcher is not None and self.received is not None
        for number, handler in self._before.items():  # a launcher repeats its signal to ranks that are about to end
            signal.signal(number, signal.SIG_IGN if ending else handler)

    def ask(self, why: str) -> None:
        """Asks for the run's end, as a signal does."""
        if self.received is None:
            self.received, self.since = why, time.monotonic()

    def take_over(self) -> None:
        """Asks for the end at once, without grace."""
        self.taken_over = True
        self.ask(ANOTHER_RUN)

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
        """Takes the handlers over, also from whoever has set others meanwhile."""
        for number in STOPPING:
            signal.signal(number, self._handle)

    def _watch(self) -> None:
        while not self.drawing and not self._left.is_set():
            heard = select.select([self._told], [], [], LOOK_S)[0]
            for number in os.read(self._told, 64) if heard else b"":
                if number in STOPPING:
                    self.ask(signal.Signals(number).name)
            if self.asked() and not self.drawing:
                with suppress(Exception):
                    self.release()
                _LOG.warning("stopped by %s before anything was drawn", self.received)
                os._exit(AGAIN)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == "SIGINT":
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            raise KeyboardInterrupt
        if self.received is None or number == signal.SIGINT:
            self.since = self.since or time.monotonic()
            self.received = signal.Signals(number).name
