"""What every command does with a mistake: one line, exit code 2, and nothing is written."""

from pathlib import Path

import pytest

from hybridiff import cli


def refusal(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The line by which a command refuses its arguments; nothing in the folder changes."""
    before = sorted(folder.rglob("*"))
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith(f"{arguments[0]}: error: ") and "secret" not in captured.err
    assert sorted(folder.rglob("*")) == before
    return captured.err
