"""The errors that end a command in one line, and how options are checked: a message names what was given and what is allowed."""

from collections.abc import Sequence


class UsageError(ValueError):
    """A mistake in what the user gave: reported in one line on every rank, exit code 2."""


class StorageError(OSError):
    """Storage did not do what it was asked to in mid-run: reported in one line, exit code 1; running the command again helps."""


class StorageUnreachable(StorageError):
    """No server answered at all: at the start of a run its address is probably a mistake."""


def require(condition: bool, name: str, given: object, allowed: str) -> None:
    """Raises ``UsageError`` with the option's name, what was given and what is allowed, unless ``condition`` holds."""
    if not condition:
        raise UsageError(f"{name} is {given!r}; allowed: {allowed}")


def require_choice(name: str, given: object, choices: Sequence[object]) -> None:
    """Raises ``UsageError`` unless ``given`` is one of ``choices``."""
    require(given in choices, name, given, ", ".join(map(str, choices)))


def require_whole(name: str, given: object) -> None:
    """Raises ``UsageError`` unless ``given`` is an integer."""
    require(isinstance(given, int) and not isinstance(given, bool), name, given, "a whole number")
