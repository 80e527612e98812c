"""The errors that end a command in one line, and how options are checked: a message names what was given and what is allowed."""

import errno
from collections.abc import Sequence

# What file systems raise about a place that is not there, of another kind or not allowed, and about urls that they can't have.
_GIVEN = (FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError, IsADirectoryError)
_GIVEN_NUMBERS = frozenset({errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL})
_UNUSABLE = (ValueError, TypeError, ImportError, NotImplementedError)
PASSING_STATUS = frozenset({408, 425, 429})  # of HTTP, among those that blame the request


class UsageError(ValueError):
    """A mistake in what the user gave: reported in one line on every rank, exit code 2."""


class ServiceError(OSError):
    """What a run depends on, such as SLURM or a GPU's driver, did not answer: reported in one line, exit code 1."""


class StorageError(ServiceError):
    """Storage did not do what it was asked to: reported in one line, exit code 1; running the command again helps."""


def access_error(message: str, error: BaseException) -> UsageError | StorageError:
    """What to raise where a file system, whose clients raise types of their own, failed at something that the user has named.

    A ``UsageError`` where the place is not there, not allowed or can't exist; a ``StorageError`` where storage did not answer or
    failed, which may be over when the command is run again.

    Args:
        message: the line to report.
        error: what was raised.
    """
    if isinstance(error, UsageError):
        return UsageError(message)
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and cause is not None and type(cause).__module__.startswith("aiohttp"):
        error = cause  # fsspec says of whatever goes wrong with HTTP that there is no such file
    if isinstance(error, OSError):
        given = isinstance(error, _GIVEN) or error.errno in _GIVEN_NUMBERS
    else:
        given = isinstance(error, _UNUSABLE)
    status = getattr(error, "status", None)
    refused = isinstance(status, int) and 400 <= status < 500 and status not in PASSING_STATUS
    return UsageError(message) if given or refused else StorageError(message)


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


def require_positive(name: str, given: object) -> None:
    """Raises ``UsageError`` unless ``given`` is a finite number above 0."""
    number = isinstance(given, int | float) and not isinstance(given, bool)
    require(number and 0 < given < float("inf"), name, given, "more than 0, and finite")  # type: ignore[operator]


def amount(number: int, noun: str) -> str:
    """A number and what it counts: "1 image", "2 images"."""
    return f"{number} {noun}{'' if number == 1 else 's' if not noun.endswith('s') else 'es'}"


def require_utf8(text: str) -> None:
    """Raises ``UsageError`` for text that UTF-8 cannot hold, and no file of a corpus: a file's name in another encoding."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{text!r} is not UTF-8; allowed: UTF-8, in a locale such as C.UTF-8") from error
