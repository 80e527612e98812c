"""CLI: the command ``hybridiff``, a module for each of its commands; what a command needs is imported when it is called.

A command is a name in ``COMMANDS`` and the module of that name here, which has ``main(arguments) -> exit code``. It may raise
``UsageError`` (exit code 2), ``OSError``, of which ``StorageError`` is one (1), and ``KeyboardInterrupt`` (130): each ends in one
line on standard error. Anything else is a crash, whose traceback shows no secrets.
"""

import argparse
import atexit
import difflib
import gc
import importlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TextIO

from hybridiff import __version__
from hybridiff.cluster.exit_codes import DONE, INTERRUPTED, MISTAKE, NOT_DONE
from hybridiff.errors import StorageError, UsageError, require_utf8

COMMANDS = {
    "generate": "generate a corpus of images from tables of prompts",
    "evaluate": "say how good a corpus is: metrics against a reference, scores of its rows",
    "compare": "generate a sample of a job with its schedule and with full steps, and say speed and harm",
    "verify": "check every file of a corpus, and repair it",
    "status": "show the progress of a corpus",
    "select": "select the rows of a scored corpus that make a dataset",
    "publish": "copy a corpus to the Hugging Face Hub or other storage",
    "submit": "plan a job, size it and submit it to SLURM",
}
OPTIONS_OF_JOB = "OPTIONS OF hybridiff generate"
COMPLETION = "--print_completion"
OPTIONS = ("--help", "--version", COMPLETION)  # of the command itself, before the name of one of COMMANDS
DEFAULTS = {  # of the environment, for libraries that are loaded later
    "TOKENIZERS_PARALLELISM": "false",  # the tokenizers' threads and ours would fight over cores
    "TRANSFORMERS_VERBOSITY": "error",  # it advises to install torchvision, which nothing here needs
}
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
UNDER_TORCHRUN = {"OMP_NUM_THREADS": "1"}  # as torchrun itself sets it for several ranks


class HelpFormatter(argparse.HelpFormatter):
    """Help as wide as the terminal: paragraphs of the description are wrapped, indented lines stay as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        wrap = super()._fill_text
        paragraphs = text.replace("``", "").strip("\n").split("\n\n")
        return "\n\n".join(one if one.startswith(" ") else wrap(one, width, indent) for one in paragraphs)


class Parser(argparse.ArgumentParser):
    """The arguments of a command; a mistake is a ``UsageError``.

    Args:
        command: name of the command.
        description: text above the options in its help.
    """

    def __init__(self, command: str, description: str | None) -> None:
        super().__init__(f"hybridiff {command}", description=description, formatter_class=HelpFormatter, allow_abbrev=False)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, but an option that does not exist is refused before an argument that is not given."""
        for word in args or ():
            if word == "--":
                break
            if word.startswith("--") and word.partition("=")[0] not in self._option_string_actions:
                raise UsageError(self.unknown_option(word))
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raises UsageError."""
        if missing := re.fullmatch(r"the following arguments are required: (.*)", message):
            raise UsageError(f"{missing[1]} is not given; {self.usage_line()}")
        if unknown := re.fullmatch(r"unrecognized arguments: (.*)", message):
            given = unknown[1].split()[0]
            if not given.startswith("-"):
                raise UsageError(f"{given} is one argument too many; {self.usage_line()}")
            raise UsageError(self.unknown_option(given))
        raise UsageError(message.removeprefix("argument ").replace(": is ", " is "))

    def usage_line(self) -> str:
        """The usage in one line."""
        return " ".join(self.format_usage().split())

    def takes_job(self) -> None:
        """Adds to the usage that the options of a job are taken too, which ``parse_known_args`` leaves."""
        indent = " " * len(f"usage: {self.prog} ")
        self.usage = f"{self.format_usage().removeprefix('usage: ').rstrip()}\n{indent}{OPTIONS_OF_JOB}"

    def unknown_option(self, given: str, others: Sequence[str] = (), allowed: str = "") -> str:
        """The refusal of an option that does not exist.

        Args:
            given: the argument, with or without a value.
            others: names of options that are not this parser's.
            allowed: ending of the list of allowed options.
        """
        own = [name.removeprefix("--") for name in self._option_string_actions if name.startswith("--") and name != "--help"]
        option = given.partition("=")[0]
        near = difflib.get_close_matches(option.lstrip("-").lower().replace("-", "_"), [*own, *others], n=1, cutoff=0.75)
        hint = f"did you mean --{near[0]}?" if near else f"allowed: --{', --'.join(own)}{allowed}"
        return f"there is no option {option}; {hint}"


def whole(least: int) -> Callable[[str], int]:
    """The type of options that are whole numbers from ``least`` on."""

    def convert(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"is {text!r}; allowed: a whole number from {least} on")
        return int(text)

    return convert


def entry(command: str | None = None) -> NoReturn:
    """Runs the process's command line and ends the process with the exit code.

    Args:
        command: the command to run, whose name the command line then lacks; by default the first argument names it.
    """
    gc.disable()  # while libraries are loaded, which takes a fifth longer with it
    prepare_process()
    try:
        code = main([command, *sys.argv[1:]] if command else sys.argv[1:])
    except SystemExit as ending:  # of argparse, and of signals before a run
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except Exception:
        sys.excepthook(*sys.exc_info())
        code = NOT_DONE
    end(code)


def prepare_process() -> None:
    """Sets what libraries read when they are loaded, finds modules in the working directory, hides secrets in tracebacks."""
    from hybridiff.secrets import install_redaction, report_crash

    for name, value in (DEFAULTS | (UNDER_TORCHRUN if "TORCHELASTIC_RUN_ID" in os.environ else {})).items():
        os.environ.setdefault(name, value)
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # at the end: callbacks and schedules of the user's own, never in place of a library
    install_redaction()
    sys.excepthook = report_crash


def main(arguments: list[str]) -> int:
    """Runs a command and returns its exit code.

    Args:
        arguments: the command's name and its arguments.
    """
    name, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    speaker = name if name in COMMANDS else "hybridiff"
    try:
        for given in arguments:
            require_utf8(given)
        code: int = importlib.import_module(f"hybridiff.cli.{name}").main(rest) if name in COMMANDS else _answer(name, rest)
        return code
    except UsageError as error:
        say([f"{speaker}: error: {error}"], sys.stderr)
        return MISTAKE
    except OSError as error:
        say([f"{speaker}: error: {type(error).__name__}: {error}"], sys.stderr)
        return NOT_DONE
    except KeyboardInterrupt:
        say([f"{speaker}: interrupted"], sys.stderr)
        return INTERRUPTED


def _answer(name: str, rest: Sequence[str]) -> int:
    """Does what an option of the command itself asks for."""
    if not name:
        say([usage()], sys.stderr)
        return MISTAKE
    if name in ("-h", "--help"):
        text = overview()
    elif name == "--version":
        text = f"hybridiff {__version__}"
    elif name == COMPLETION:
        from hybridiff.cli.completion import completion_script

        text = completion_script(rest[0] if rest else "", COMMANDS)
    else:
        raise UsageError(_unknown(name))
    say([text], sys.stdout)
    return DONE


def usage() -> str:
    """The usage line."""
    return f"usage: hybridiff {{{','.join(COMMANDS)}}} ...  (hybridiff --help; hybridiff COMMAND --help)"


def overview() -> str:
    """The help of the command itself."""
    width = max(map(len, COMMANDS)) + 2
    lines = (f"  {name:{width}}{text}" for name, text in COMMANDS.items())
    ending = "COMMAND --help shows a command's options, --version the version, --print_completion bash|zsh|tcsh a script for it."
    return "\n".join(
        [usage().partition("  (")[0], "", "Image datasets from diffusion models.", "", "commands:", *lines, "", ending]
    )


def say(lines: Iterable[str], where: TextIO) -> None:
    """Prints lines without the secrets that this process was given, one line each; nothing where nobody reads any more."""
    from hybridiff.secrets import redact

    with suppress(BrokenPipeError):
        for line in lines:
            print(_printable(redact(" ".join(line.split()) if where is sys.stderr else line)), file=where, flush=True)


def _printable(text: str) -> str:
    """A text with escapes for what a terminal would obey, as in names of files, and for what it can't show."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def say_aside(line: str) -> None:
    """Prints a line on the course of a command to standard error."""
    say([line], sys.stderr)


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turns what storage clients raise of types of their own into a ``StorageError``."""
    from hybridiff.secrets import one_line

    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("builtins", "hybridiff"):
            raise
        raise StorageError(one_line(error)) from error


def end(code: int) -> NoReturn:
    """Ends the process: with what libraries have registered for its end, but without the interpreter's own.

    That destroys process groups whose threads may still run, and at times aborts: 134 instead of 85, after which nobody resumes.
    """
    atexit._run_exitfuncs()  # such as those of Lightning's loggers
    logging.shutdown()
    with suppress(OSError):  # nobody reads any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _unknown(name: str) -> str:
    kind, names = ("option", OPTIONS) if name.startswith("-") else ("command", tuple(COMMANDS))
    plain = {one.lstrip("-"): one for one in (*names, *COMMANDS, *OPTIONS)}
    near = difflib.get_close_matches(name.lstrip("-").lower(), plain, n=1, cutoff=0.5)
    hint = f"; did you mean {plain[near[0]]}?" if near else ""
    return f"there is no {kind} {name}; allowed: {', '.join(names)}{hint}"
