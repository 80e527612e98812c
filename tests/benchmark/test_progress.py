"""What a run prints and keeps."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hybridiff.errors import StorageError
from jobs.benchmark.progress import SIGNALS, Interrupted, Progress, interruptible


class Numbers:
    def __init__(self, *numbers: int) -> None:
        self.numbers = list(numbers)

    def record(self) -> dict[str, Any]:
        return {"numbers": self.numbers}

    def lines(self) -> list[str]:
        return [f"| {number} |" for number in self.numbers]


@pytest.fixture
def handlers() -> Iterator[list[Any]]:
    before = [signal.getsignal(number) for number in SIGNALS]
    yield before
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


def test_each_row_is_printed_and_in_the_file_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.json"
    progress = Progress(str(path), is_log_rank=True)
    for count in (1, 2):
        progress.measured(f"row {count}", Numbers(*range(count)))
        assert json.loads(path.read_text()) == {"complete": False, "numbers": list(range(count))}
        assert capsys.readouterr().out == f"row {count}\n"
    progress.finish(Numbers(7), complete=True)
    assert capsys.readouterr().out == '\n| 7 |\n{"complete": true, "numbers": [7]}\n'
    assert json.loads(path.read_text()) == {"complete": True, "numbers": [7]}
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]


def test_other_ranks_say_and_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(str(tmp_path / "a.json"), is_log_rank=False)
    progress.measured("row 1", Numbers(1))
    progress.finish(Numbers(1), complete=True)
    assert capsys.readouterr().out == "" and list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_written_does_not_stop_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(str(tmp_path / "gone" / "a.json"), is_log_rank=True)
    for count in (1, 2):
        progress.measured(f"row {count}", Numbers(count))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == ["row 1", "row 2"] and lines[0].startswith("the report cannot be written now")
    with pytest.raises(StorageError, match="the results are above, but a file could not be written"):
        progress.finish(Numbers(2), complete=True)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["numbers"] == [2]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_interrupts_once_and_repetitions_are_ignored(number: signal.Signals, handlers: list[Any]) -> None:
    with pytest.raises(Interrupted, match=number.name) as caught, interruptible():
        try:
            signal.raise_signal(number)
        finally:
            for each in SIGNALS:
                signal.raise_signal(each)
    assert caught.value.exit_code == 128 + number


def test_handlers_are_restored_without_a_signal(handlers: list[Any]) -> None:
    with interruptible():
        assert signal.getsignal(signal.SIGTERM) not in handlers
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    with pytest.raises(ValueError), interruptible():
        raise ValueError
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
