"""Nothing that is said on the way out holds a secret: not a refusal, not the trace of a crash."""

import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from hybridiff.secrets import hide, secrets_in

NO_SECRETS = ("PWD", "OLDPWD")  # directories


def known_secrets(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> set[str]:
    """Secrets of the environment, of the command line and of the files that it names as configurations."""
    given = list(arguments)
    for name, value in zip(arguments, [*arguments[1:], ""], strict=True):
        path = value if name == "--config" else name.removeprefix("--config=") if name.startswith("--config=") else ""
        with suppress(OSError, UnicodeError):
            given.append(Path(path).read_text() if path else "")
    variables = {name: value for name, value in environment.items() if name not in NO_SECRETS}
    return secrets_in(variables) | {secret for text in given for word in text.split() for secret in secrets_in(word)}


def report_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A ``sys.excepthook`` that takes secrets out of the trace."""
    text = "".join(traceback.format_exception(kind, error, trace))
    sys.stderr.write(hide(text, known_secrets(sys.argv[1:])))
