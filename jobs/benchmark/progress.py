"""What a benchmark says while it runs, and how what it has measured survives its end, whatever ends it."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from hybridiff.errors import StorageError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Record(Protocol):
    """Measurements of a run, as far as they have come."""

    def record(self) -> dict[str, Any]:
        """Plain values."""
        ...

    def lines(self) -> list[str]:
        """Tables for people."""
        ...


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM.

    Args:
        number: number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise ``Interrupted`` once in here; launchers repeat them to ranks that are about to end."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(number)

    before = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        yield
    except Interrupted:
        raise  # and later signals stay ignored: what was measured is being printed
    except BaseException:
        _restore(before)
        raise
    else:
        _restore(before)


def _restore(before: dict[signal.Signals, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)


class Progress:
    """Prints what the benchmark is doing, and keeps the report's file up to date.

    Args:
        path: JSON file that is replaced after each row; None for no file.
        is_log_rank: whether this rank prints and writes; the others do neither.
    """

    def __init__(self, path: str | None, is_log_rank: bool) -> None:
        self.path = None if path is None else Path(path)
        self.is_log_rank = is_log_rank
        self._failed = False

    def say(self, line: str) -> None:
        """Prints a line at once."""
        if self.is_log_rank:
            print(line, flush=True)

    def measured(self, line: str, report: Record) -> None:
        """Writes the report so far, and prints a line about the row that was just measured: what is printed is in the file."""
        try:
            self._write(report, complete=False)
        except OSError as error:
            if not self._failed:
                self.say(f"the report cannot be written now, and the benchmark goes on: {error}")
            self._failed = True
        self.say(line)

    def finish(self, report: Record, complete: bool) -> None:
        """Prints the tables, with the report as JSON on the last line, and writes it.

        Raises:
            StorageError: the file could not be written; everything has been printed.
        """
        if not self.is_log_rank:
            return
        print("\n".join(["", *report.lines(), _json(report, complete)]), flush=True)  # first, as it may have taken hours
        try:
            self._write(report, complete)
        except OSError as error:  # a file that was writable before may not be so hours later
            raise StorageError(f"the results are above, but a file could not be written: {error}") from error

    def _write(self, report: Record, complete: bool) -> None:
        """Replaces the file at once, so that a kill leaves the old one or the new one."""
        if self.path is None or not self.is_log_rank:
            return
        new = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            new.write_text(_json(report, complete) + "\n")
            new.replace(self.path)
        except OSError:
            new.unlink(missing_ok=True)
            raise


def _json(report: Record, complete: bool) -> str:
    return json.dumps({"complete": complete, **report.record()})
