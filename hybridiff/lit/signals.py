"""Signals that ask a run to end: they set a flag, and the groups look at it between batches."""

import os
import signal
import time
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
ANOTHER_RANK = "a signal to another rank"
LOOK_S = 0.2


class StopSignals:
    """Handles SIGTERM, SIGINT and SIGUSR1 while it is entered; a second SIGINT raises ``KeyboardInterrupt``, a third kills.

    Args:
        watch_parent: Whether the end of the process that started this one counts as a signal.

    Attributes:
        received: What was asked for last, a signal's name; None if nothing was.
        since: When it first was, by ``time.monotonic``.
    """

    def __init__(self, watch_parent: bool = False) -> None:
        self._parent = os.getppid() if watch_parent else None
        self.received: str | None = None
        self.since = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        self._before = {number: signal.getsignal(number) for number in STOPPING}
        self.install()
        return self

    def __exit__(self, *_: Any) -> None:
        ending = self._parent is not None and self.received is not None
        for number, handler in self._before.items():  # a launcher repeats its signal to ranks that are about to end
            signal.signal(number, signal.SIG_IGN if ending else handler)

    def asked(self) -> bool:
        """Whether the run is to end."""
        if self.received is None and self._parent is not None and os.getppid() != self._parent:
            self.received, self.since = "the end of its launcher", time.monotonic()
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

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == "SIGINT":
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            raise KeyboardInterrupt
        if self.received is None or number == signal.SIGINT:
            self.since = self.since or time.monotonic()
            self.received = signal.Signals(number).name


class SignalCallback(Callback):
    """Takes the handlers back from Lightning, whose own for SIGTERM waits for all ranks inside the signal."""

    def __init__(self, signals: StopSignals) -> None:
        self._signals = signals

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Comes right after Lightning has set its own."""
        self._signals.install()
