"""Redaction: passwords, keys and tokens are removed from everything that is kept or printed. One strength for all.

Urls with credentials are refused where they are given (``refuse_credentials``). What is left passes ``redact`` at the exits: the
run record and rows, log records and warnings (``install_redaction``), the lines that commands print, tracebacks
(``report_crash``). All patterns read each character a bounded number of times, so long texts take linear time.
"""

import errno
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote

from hybridiff.errors import UsageError

HIDDEN = "***"
MAX_CONFIG_BYTES = 1_000_000  # of a configuration file
_KEY_VARIABLE = re.compile(r"(?:.*[_-])?KEY|CODE|SESSION", re.IGNORECASE)  # in texts, a key names a sample
_SHORTEST_KEY = 8
_SHORTEST = 6  # characters of a known secret that is hidden wherever it occurs: shorter ones are parts of any text
# Variables that are named like secrets and are none:
_NOT_SECRET = re.compile(r"(?:OLD)?PWD|.*_(?:FILE|PATH|DIR|DIRECTORY|SOCK)", re.IGNORECASE)

# Names. Some name a secret wherever they occur, some as a word of a name, and some only in a url, an option or name=value.
_SECRET_PART = re.compile(
    r"secret|token(?!i)|passw(?:or)?d|passphrase|passcode|credential|creds(?![a-z])|signature|authorization|bearer|cookie|jwt"
    r"|connection_?string|sess(?:ion)?_?id(?![a-z])|(?:api|access|account|private|shared|signing|ssh|encryption|master)[_-]?key"
    r"|(?:access|security|verification|activation|recovery)[_-]?code",
    re.IGNORECASE,
)
_SECRET_WORDS = frozenset({"pass", "pw", "pwd", "pat", "dsn", "sas", "sig", "auth", "otp", "totp", "mfa", "passkey"})
_SECRET_NAMES = frozenset({"code", "session", "login", "pin"})
_DIGITS = frozenset({"otp", "totp", "mfa", "pin", "passcode"})  # whose values are numbers
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_SPECIAL_TOKEN = re.compile(r"(?:pad|bos|eos|unk|sep|cls|mask|decoder_start|special)_tokens?(?![a-z])", re.IGNORECASE)
_TOKENS = re.compile(r"(?<!access_)tokens(?![a-z])", re.IGNORECASE)
_COUNT = re.compile(r"\d{1,9}(?:\.\d*)?")
_ERROR = re.compile(  # what follows these names and a colon says what went wrong
    r"[A-Z]\w*(?:Error|Exception|Warning)|SignatureDoesNotMatch|SignatureVersionNotSupported|IncompleteSignature|CredentialsNotSupported"
    r"|AuthorizationHeaderMalformed|InvalidAccessKeyId|Invalid(?:Client)?Token(?:Id)?|ExpiredToken|TokenRefreshRequired"
    r"|MissingAuthenticationToken"
)
_STATE_WORDS = re.compile(  # of error codes and of states, which follow "code=", "session: " and "pass: ", too: NoSuchKey, closed
    r"aborted|already|bad|cancelled|closed|conflict|denied|disabled|done|down|enabled|error|exceeded|exception|exhausted|exists"
    r"|expired|failed|failure|fault|forbidden|found|gone|idle|incomplete|internal|invalid|loss|lost|malformed|mismatch|missing|no"
    r"|none|not|of|ok|open|out|passed|ready|redirect|refused|required|reset|slow|throttled|throttling|timeout|too|unauthenticated"
    r"|unauthorized|unavailable|unimplemented|unknown|unsupported"
)
_FIELD_STARTS, _FIELD_ENDS = ",;:({[|\n'\"", ",;)}]|\n'\""

# Texts. Passwords may hold / and @, though they should not.
_WORD_WITH_USER = re.compile(r"(?<![^\s'\"])[^\s'\"]+@")
_USER_PASSWORD = r"(?!\[)[^/?@:\s'\"]*:(?!\d+[/?])[^\s'\"]+@"
_USER = re.compile(rf"(?<=://)(?:{_USER_PASSWORD}|[^/?\s'\"]+@)|(?:(?<=^//)|(?<=[=(,]//)){_USER_PASSWORD}")
_MIXED = r"(?=[^\s'\"@]*\d)(?=[^\s'\"@]*[^\W\d_])"  # as passwords are, and words are not
_HOST = r"(?:[a-z][\w-]{0,62}(?:\.[\w-]{1,63}|:\d{2,5}(?![\d.]))|\d{1,3}(?:\.\d{1,3}){3}|localhost(?!\w))"
_ACCOUNT = re.compile(  # user:password@host without a scheme, and not style:anime@home
    rf"(?<![^\s'\"=(,])(?:[a-z][\w.+-]{{0,63}}:(?:{_MIXED}[^\s'\"/@:]{{2,128}}@(?=[a-z])|[^\s'\"/@:]{{2,128}}@(?={_HOST}))"
    r"|(?:root|admin\w*|user\w*|guest|service|postgres|mysql|oracle|sa|ftp):[^\s'\"/@:]{2,128}@(?=[a-z]))",
    re.IGNORECASE,
)
_USER_OPTION = re.compile(  # curl -u user:password, and not docker -u 1000:1000
    rf"(?<![\w-])((?:-u|--(?:[\w-]{{1,40}}-)?user)(?:['\"]?[\s=,]+['\"]?|(?=[\w.+-]{{1,64}}:{_MIXED})))"
    r"(?P<user>[^\s'\":,=-][^\s'\":,]*):(?!(?:\d+|(?P=user))(?![^\s'\",;)]))[^\s'\"]+",
    re.IGNORECASE,
)
_QUERY = re.compile(r"([?&;#])([^=&;?#\s]+)=([^&;\s'\"]*)")
_NAMED = re.compile(r"(?<![\w-])([\w-]+?)(?![\w]|-(?!>))(['\"]?\s*(?:[=-]>|[=:])\s*['\"]?)")
_FLAG = re.compile(r"(?<!\S)(--?(?:[\w-]+\.)*([\w-]+)\s+)([^\s-]\S*)")
_TAG = re.compile(r"<([\w-]+)>([^<>]*)(?=</)")
_BEARER = re.compile(  # with a digit, of more letters than words have, or alone
    r"(?<![\w-])(Bearer\s+)(?:(?=[^\s\d]*\d)[\w.~+/=-]{8,}|[\w.~+/=-]{20,})|\A(\s*Bearer\s+)[\w.~+/=-]{8,}(?=\s*\Z)",
    re.IGNORECASE,
)
_VALUE = re.compile(r"(?:(?:Bearer|Basic|Digest|Token|ApiKey)\s+)?[^\s'\",;&)}]+", re.IGNORECASE)
_CLOSING, _LONGEST_PAIR = {"(": ")", "[": "]", "{": "}"}, 1024  # of a user and a password, as in auth=("user", "password")
_COOKIES = re.compile(r"[^\s=;,'\"]+=[^\s;,'\"]*(?:;\s*[^\s=;,'\"]+=[^\s;,'\"]*)*")
_TOKEN_FORMATS = re.compile(  # of Hugging Face, GitHub, GitLab, AWS, Google, npm, Slack, "sk-" and JSON web tokens, private keys
    r"(?<![\w-])(?:hf_\w{20,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|(?:AKIA|ASIA)[A-Z0-9]{16}(?!\w)"
    r"|glpat-[\w-]{20,}|AIza[\w-]{30,}|npm_\w{30,}|xox[abeprs]-[\w-]{10,}|sk-(?:(?=[^\W\d]*\d|[\w-]*-\w*\d)[\w-]{20,}|\w{24,})"
    r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*)|(?<=hooks\.slack\.com/services/)\S+|-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----[^-]*"
)


def redact(value: Any) -> Any:
    """Takes secrets out of a text or of nested options.

    These are users and passwords in urls, values of secret names in urls, texts and options, tokens of known formats, and
    wherever they occur the secrets that the environment, the command line and its configuration files hold.
    """
    return _redact(value, known_secrets())


def one_line(error: BaseException) -> str:
    """An exception in one redacted line of at most 300 characters."""
    return shortened(f"{type(error).__name__}: {error}", 300)


def shortened(text: str, characters: int) -> str:
    """A text in one redacted line, cut between words: half a secret would not be recognised any more."""
    line = str(redact(" ".join(text.split())))
    return line if len(line) <= characters else f"{line[: characters - 3].rpartition(' ')[0]} ..."


def refuse_credentials(option: str, url: object) -> None:
    """Refuses a url with a user, a password or a signature in it; local paths may have any name.

    Raises:
        UsageError: names the option and not the url.
    """
    if isinstance(url, str) and "://" in url and _secrets_in_url(url):
        raise UsageError(
            f"{option} is a url with credentials in it; allowed: a url without them, "
            "and credentials in the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )


def known_secrets() -> frozenset[str]:
    """Secrets of the environment, of the command line and of the configuration files that it names."""
    return _in_environment(os.environ) | _on_command_line(tuple(sys.argv[1:]))


def install_redaction() -> None:
    """Redacts all log records and warnings of the process, of any library and to any handler."""
    create, form = logging.getLogRecordFactory(), warnings.formatwarning

    def redacted(*given: Any, **options: Any) -> logging.LogRecord:
        record = create(*given, **options)
        with suppress(Exception):  # a wrong format is reported by the handler
            record.msg, record.args = redact(record.getMessage()), None
        if record.exc_info:
            record.exc_text = redact(logging.Formatter().formatException(record.exc_info))
        return record

    def format_redacted(*given: Any, **options: Any) -> str:
        return str(redact(form(*given, **options)))

    logging.setLogRecordFactory(redacted)
    warnings.formatwarning = format_redacted


def report_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A ``sys.excepthook`` that redacts the traceback."""
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))


def _redact(value: Any, known: Iterable[str]) -> Any:
    if isinstance(value, Mapping):
        return {k: HIDDEN if _is_secret(k, v) else _redact(v, known) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redact(_without_header(one), known) for one in value]
    return _redact_text(value, known) if isinstance(value, str) else value


def _without_header(value: Any) -> Any:
    """A name and a value as headers are listed, without the value if the name is a secret's."""
    is_pair = isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(one, str) for one in value)
    return [value[0], HIDDEN] if is_pair and re.fullmatch(r"[\w-]+", value[0]) and _is_secret(*value) else value


def _redact_text(text: str, known: Iterable[str]) -> str:
    for secret in sorted(known, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    text = _ACCOUNT.sub(f"{HIDDEN}@", _WORD_WITH_USER.sub(lambda word: _USER.sub(f"{HIDDEN}@", word[0]), text))
    text = _QUERY.sub(lambda found: f"{found[1]}{found[2]}={HIDDEN if _in_query(*found.group(2, 3)) else found[3]}", text)
    text = _BEARER.sub(lambda found: f"{found[1] or found[2]}{HIDDEN}", _TOKEN_FORMATS.sub(HIDDEN, text))
    text = _USER_OPTION.sub(rf"\1{HIDDEN}", text)
    text = _FLAG.sub(lambda found: f"{found[1]}{HIDDEN}" if _is_secret(*found.group(2, 3)) else found[0], text)
    text = _TAG.sub(lambda found: f"<{found[1]}>{HIDDEN}" if _is_secret(*found.group(1, 2)) else found[0], text)
    return _redact_named(text)


def _redact_named(text: str) -> str:
    """Redacts what follows the name of a secret and = or :."""
    pieces, end = [], 0
    for start, stop in _named_secrets(text):
        pieces += [text[end:start], HIDDEN]
        end = stop
    return "".join(pieces) + text[end:]


def _named_secrets(text: str) -> Iterator[tuple[int, int]]:
    """Where the values of secrets begin and end that a text names."""
    end = 0
    for named in _NAMED.finditer(text):
        name, between = named.groups()
        if named.start() < end or not _names_secret(name, between):
            continue
        start, stop = _span(text, name, between, named.end())
        value = text[start:stop]
        if value and _is_secret(name, value) and (_SECRET_PART.search(name) or _is_given(text, named, value, stop)):
            yield start, stop
            end = stop


def _names_secret(name: str, between: str) -> bool:
    if _SECRET_PART.search(name):
        return not (between.rstrip() == ":" != between and _ERROR.fullmatch(name))
    return _has_secret_word(name) or name.lower() in _SECRET_NAMES


def _is_given(text: str, named: re.Match[str], value: str, stop: int) -> bool:
    """Whether a word such as pass or code has a value, or is one of a sentence.

    "pass=", "'pass': " and "pass:x" give one; so do "pass: x" between separators, and "code: x" if it is the whole text.
    Error codes and states are no secrets.
    """
    name, between = named.groups()
    is_name = name.lower() in _SECRET_NAMES
    if "=" in between or between[0] in "'\"" or not between.endswith(" "):
        return not (is_name and _is_state(value))
    before = text[max(0, named.start() - 4) : named.start()].rstrip(" ")
    fields = text[max(0, named.start() - 64) : named.start()].rpartition(" ")[0]
    follows = before[-1:] in _FIELD_STARTS or "=" in fields.rpartition(" ")[2]  # true at the start of a text
    starts = named.start() <= 4 and not before if is_name else follows
    ends = stop == len(text) or (not is_name and text[stop] in _FIELD_ENDS)
    return starts and ends and not _is_state(value)


def _is_state(value: str) -> bool:
    """Whether a value is an error's code, a state or an object: NoSuchKey, ENOSPC, closed, <Session object>."""
    is_word = re.fullmatch(r"[A-Za-z_]{1,64}", value) is not None
    is_code = is_word and any(_STATE_WORDS.fullmatch(word.lower()) for word in _WORDS.findall(value))
    return is_code or value in errno.errorcode.values() or value.startswith("<")


def _span(text: str, name: str, between: str, start: int) -> tuple[int, int]:
    """Where a value begins and ends: at its closing quote or bracket, or before a separator."""
    if between[-1] in "'\"" and (stop := text.find(between[-1], start)) >= 0:
        return start, stop
    if (closing := _CLOSING.get(text[start : start + 1])) and (stop := text.find(closing, start, start + _LONGEST_PAIR)) >= 0:
        return start + 1, stop
    pattern = _COOKIES if "cookie" in name.lower() else _VALUE
    found = pattern.match(text, start) or _VALUE.match(text, start)
    return (start, found.end()) if found else (start, start)


def _is_secret(name: Any, value: Any) -> bool:
    """Whether the value of an option, a variable or a url's parameter is a secret by its name."""
    if value is None or isinstance(value, bool):
        return False
    name = _SPECIAL_TOKEN.sub("", str(name))
    counted = isinstance(value, (str, int, float)) and _COUNT.fullmatch(str(value)) is not None
    if _SECRET_PART.search(_TOKENS.sub("", name) if counted else name):
        return True
    if counted and len(str(value)) >= 4 and name.lower() in _DIGITS:
        return True
    trivial = counted or (isinstance(value, str) and value.lower() in ("", "true", "false", "none", "null"))
    return not trivial and (_has_secret_word(name) or name.lower() in _SECRET_NAMES)


def _has_secret_word(name: str) -> bool:
    return any(word.lower() in _SECRET_WORDS for word in _WORDS.findall(name))


def _in_query(name: str, value: str) -> bool:
    name = unquote(name)
    return bool(value) and (name.lower() in {"key", *_SECRET_NAMES} or _is_secret(name, value))


def _secrets_in_url(text: str) -> set[str]:
    """Passwords, or users without one, and values of secret names in the urls of a text."""
    words = (word for found in _WORD_WITH_USER.finditer(text) for word in _USER.findall(found[0]))
    users = {user[:-1].partition(":")[2] or user[:-1] for user in words}
    return users | {found[3] for found in _QUERY.finditer(text) if _in_query(found[2], found[3])}


def _in_environment(environment: Mapping[str, str]) -> frozenset[str]:
    return frozenset(secret for name, value in environment.items() for secret in _of_variable(name, value))


@lru_cache(maxsize=1024)
def _of_variable(name: str, value: str) -> frozenset[str]:
    """Secrets that a variable of the environment holds: all of its value, or a part of it as in DSNs."""
    found = _secrets_in_url(value) if "://" in value else set()
    weak = name.lower() in _SECRET_NAMES
    is_key = _KEY_VARIABLE.fullmatch(name) and len(value) >= _SHORTEST_KEY and not _COUNT.fullmatch(value)
    is_path = value.startswith("/") and os.path.exists(value)
    if not _NOT_SECRET.fullmatch(name) and ((not weak and _is_secret(name, value)) or (is_key and not is_path)):
        found |= {value, *(value[start:stop] for start, stop in _named_secrets(value))}
    return frozenset(_long(found))


@lru_cache(maxsize=4)
def _on_command_line(arguments: tuple[str, ...]) -> frozenset[str]:
    found: set[str] = set()
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        option, equals, value = argument.partition("=")
        found |= _secrets_in_url(argument)
        if option.startswith("-"):
            value = value if equals else following
            found |= {value} if _is_secret(option.rpartition(".")[2].lstrip("-"), value) and not value.startswith("--") else set()
            if option == "--config":
                with suppress(OSError, UnicodeError):
                    found |= _in_file(config_text(Path(os.path.expanduser(value))))
    return frozenset(_long(found))


def config_text(path: Path) -> str:
    """The text of a configuration file, up to one character more than it may have.

    Raises:
        OSError: it can't be read, or is no regular file: a FIFO or device may never end, or never answer.
        UnicodeError: it is not UTF-8.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "not a regular file")
    with path.open(encoding="utf-8-sig") as file:
        return file.read(MAX_CONFIG_BYTES + 1)


def _in_file(text: str) -> set[str]:
    """Secrets in the text of a configuration file."""
    found = {secret for word in text.split() for secret in _secrets_in_url(word)}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        value = value.strip().strip("'\"")
        if colon and _is_secret(name.strip().strip("'\"- "), value):
            found.add(value)
    return found


def _long(secrets: Iterable[str]) -> set[str]:
    """Those secrets that are long enough to be hidden wherever they occur, as they are given and as urls quote them."""
    return {one for secret in secrets for one in (secret, unquote(secret)) if len(one) >= _SHORTEST}
