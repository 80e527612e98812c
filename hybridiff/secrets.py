"""Passwords, keys and tokens in options, urls and messages: found, and taken out of what is written or said."""

import os
import re
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote

_SECRET_WORD = (
    r"secret|token(?!i)|passw(?:or)?d|passphrase|credential|signature|authorization|bearer|connection_?string"
    r"|(?:api|access|account|private|shared)[_-]?key"
)
_SECRET_NAME = re.compile(rf"{_SECRET_WORD}|^(?:key|sas|sig|pwd|auth)$", re.IGNORECASE)
# Passwords may hold / and @, though they should not.
_URL_USER = re.compile(r"(?<=://)(?:[^/?\s'\"]+@|[^/?@:\s'\"]*:(?!\d+/)[^@\s'\"]+@)")
_URL_QUERY = re.compile(r"([?&;])([^=&;\s]+)=([^&;\s'\"]*)")
_SAID = re.compile(rf"([\w-]*(?:{_SECRET_WORD})[\w-]*['\"]?\s*[=:]\s*['\"]?)([^\s'\",;&)}}]+)", re.IGNORECASE)
_DIRECTORIES = ("PWD", "OLDPWD")  # variables that are named like secrets
_SHORTEST_SECRET = 6  # characters of what is hidden wherever it occurs: shorter ones are words of any text


def redact(value: Any) -> Any:
    """Takes secrets out of a nested configuration: users and passwords in urls, secret query values, secret-named options."""
    if isinstance(value, dict):
        return {k: "***" if k != "key" and _is_secret(k, v) else redact(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(v) for v in value]
    if isinstance(value, str):
        return _URL_QUERY.sub(_redact_query, _URL_USER.sub("***@", value))
    return value


def hide(text: str, known: Iterable[str] = ()) -> str:
    """Takes secrets out of a message, whoever wrote it: as ``redact`` does, named ones, and known ones wherever they stand."""
    for secret in sorted(known, key=len, reverse=True):
        text = text.replace(secret, "***")
    return _SAID.sub(r"\1***", str(redact(text)))


def one_line(error: BaseException) -> str:
    """An exception in one line, without secrets in it."""
    return hide(" ".join(f"{type(error).__name__}: {error}".split()))[:300]


def secrets_in(value: Any) -> set[str]:
    """What ``redact`` would take out of a nested configuration, as it is given and as urls quote it."""
    if isinstance(value, dict):
        return {s for k, v in value.items() for s in (_long({str(v)}) if _is_secret(k, v) else secrets_in(v))}
    if isinstance(value, (list, tuple)):
        return {secret for v in value for secret in secrets_in(v)}
    if not isinstance(value, str):
        return set()
    users = {part for match in _URL_USER.finditer(value) for part in (match[0][:-1].partition(":")[2] or match[0][:-1],)}
    return _long(users | {match[3] for match in _URL_QUERY.finditer(value) if _SECRET_NAME.search(match[2])})


def known_secrets(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> set[str]:
    """Secrets of the environment, of the command line and of the files that it names as configurations."""
    given = list(arguments)
    for name, value in zip(arguments, [*arguments[1:], ""], strict=True):
        path = value if name == "--config" else name.removeprefix("--config=") if name.startswith("--config=") else ""
        with suppress(OSError, UnicodeError):
            given.append(Path(path).read_text() if path else "")
    variables = {name: value for name, value in environment.items() if name not in _DIRECTORIES}
    return secrets_in(variables) | {secret for text in given for word in text.split() for secret in secrets_in(word)}


def report_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A ``sys.excepthook`` that takes secrets out of the trace."""
    text = "".join(traceback.format_exception(kind, error, trace))
    sys.stderr.write(hide(text, known_secrets(sys.argv[1:])))


def _is_secret(name: Any, value: Any) -> bool:
    return value is not None and not isinstance(value, bool) and _SECRET_NAME.search(str(name)) is not None


def _long(secrets: set[str]) -> set[str]:
    return {one for secret in secrets for one in (secret, unquote(secret)) if len(one) >= _SHORTEST_SECRET}


def _redact_query(match: re.Match[str]) -> str:
    separator, name, given = match.groups()
    return f"{separator}{name}={'***' if _SECRET_NAME.search(name) else given}"
