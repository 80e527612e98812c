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
_SECRET_SAID = re.compile(_SECRET_WORD, re.IGNORECASE)
_SECRET_NAME = re.compile(rf"{_SECRET_WORD}|^(?:key|sas|sig|pwd|auth)$", re.IGNORECASE)
_SPECIAL_TOKEN = re.compile(r"(?:pad|bos|eos|unk|sep|cls|mask|decoder_start|special)_tokens?(?![a-z])", re.IGNORECASE)
_TOKENS = re.compile(r"(?<!access_)tokens(?![a-z])", re.IGNORECASE)
_COUNT = re.compile(r"\d{1,9}(?:\.\d*)?")
_ERROR = re.compile(  # what comes after it is what went wrong
    r"[A-Z]\w*(?:Error|Exception|Warning)|SignatureDoesNotMatch|SignatureVersionNotSupported|IncompleteSignature|CredentialsNotSupported"
    r"|AuthorizationHeaderMalformed|InvalidAccessKeyId|Invalid(?:Client)?Token(?:Id)?|ExpiredToken|TokenRefreshRequired"
    r"|MissingAuthenticationToken"
)
# Texts may be long: all of these look at each character a few times, no more.
# Passwords may hold / and @, though they should not.
_WITH_USER = re.compile(r"(?<![^\s'\"])[^\s'\"]+@")
_URL_USER = re.compile(r"(?<=://)(?:[^/?\s'\"]+@|[^/?@:\s'\"]*:(?!\d+/)[^@\s'\"]+@)")
_URL_QUERY = re.compile(r"([?&;])([^=&;?\s]+)=([^&;\s'\"]*)")
_NAMED = re.compile(r"(?<![\w-])([\w-]+)(?![\w-])(['\"]?\s*[=:]\s*['\"]?)")
_VALUE = re.compile(r"(?:(?:Bearer|Basic)\s+)?[^\s'\",;&)}]+", re.IGNORECASE)
_DIRECTORIES = ("PWD", "OLDPWD")  # variables that are named like secrets
_SHORTEST_SECRET = 6  # characters of what is hidden wherever it occurs: shorter ones are words of any text


def redact(value: Any) -> Any:
    """Takes secrets out of a nested configuration: users and passwords in urls, secret query values, secret-named options."""
    if isinstance(value, dict):
        return {k: "***" if k != "key" and _is_secret(k, v) else redact(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(v) for v in value]
    if isinstance(value, str):
        return _URL_QUERY.sub(_redact_query, _WITH_USER.sub(lambda word: _URL_USER.sub("***@", word[0]), value))
    return value


def hide(text: str, known: Iterable[str] = ()) -> str:
    """Takes secrets out of a message, whoever wrote it: as ``redact`` does, named ones, and known ones wherever they stand."""
    for secret in sorted(known, key=len, reverse=True):
        text = text.replace(secret, "***")
    return _hide_named(str(redact(text)))


def one_line(error: BaseException) -> str:
    """An exception in one line, shortened, without secrets in it."""
    return shortened(f"{type(error).__name__}: {error}", 300)


def shortened(text: str, characters: int) -> str:
    """A text in one line without secrets, cut between words: half a secret would not be known for one any more."""
    line = hide(" ".join(text.split()))
    return line if len(line) <= characters else f"{line[: characters - 3].rpartition(' ')[0]} ..."


def secrets_in(value: Any) -> set[str]:
    """What ``redact`` would take out of a nested configuration, as it is given and as urls quote it."""
    if isinstance(value, dict):
        return {s for k, v in value.items() for s in (_long({str(v)}) if _is_secret(k, v) else secrets_in(v))}
    if isinstance(value, (list, tuple)):
        return {secret for v in value for secret in secrets_in(v)}
    if not isinstance(value, str):
        return set()
    users = {part for match in _URL_USER.finditer(value) for part in (match[0][:-1].partition(":")[2] or match[0][:-1],)}
    return _long(users | {match[3] for match in _URL_QUERY.finditer(value) if _is_secret(match[2], match[3])})


def known_secrets(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> set[str]:
    """Secrets of the environment, of the command line and of the files that it names as configurations."""
    given = list(arguments)
    for name, value in zip(arguments, [*arguments, ""][1:], strict=True):
        path = value if name == "--config" else name.removeprefix("--config=") if name.startswith("--config=") else ""
        with suppress(OSError, UnicodeError):
            given.append(Path(path).read_text() if path else "")
    variables = {name: value for name, value in environment.items() if name not in _DIRECTORIES}
    return secrets_in(variables) | {secret for text in given for word in text.split() for secret in secrets_in(word)}


def report_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A ``sys.excepthook`` that takes secrets out of the trace."""
    text = "".join(traceback.format_exception(kind, error, trace))
    sys.stderr.write(hide(text, known_secrets(sys.argv[1:])))


def _hide_named(text: str) -> str:
    """Takes out what stands after the name of a secret and = or :."""
    pieces, end = [], 0
    for named in _NAMED.finditer(text):
        name, between = named.groups()
        if (
            named.start() < end
            or not _SECRET_SAID.search(name)
            or (between.rstrip() == ":" != between and _ERROR.fullmatch(name))
        ):
            continue
        value = _VALUE.match(text, named.end())
        if value is not None and _is_secret(name, value[0]):
            pieces += [text[end : value.start()], "***"]
            end = value.end()
    return "".join(pieces) + text[end:]


def _is_secret(name: Any, value: Any) -> bool:
    if value is None or isinstance(value, bool):
        return False
    name = _SPECIAL_TOKEN.sub("", str(name))
    if isinstance(value, (str, int, float)) and _COUNT.fullmatch(str(value)):
        name = _TOKENS.sub("", name)
    return _SECRET_NAME.search(name) is not None


def _long(secrets: set[str]) -> set[str]:
    return {one for secret in secrets for one in (secret, unquote(secret)) if len(one) >= _SHORTEST_SECRET}


def _redact_query(match: re.Match[str]) -> str:
    separator, name, given = match.groups()
    return f"{separator}{name}={'***' if _is_secret(name, given) else given}"
