"""Tab completion of the command: ``eval "$(hybridiff --print_completion bash)"``."""

import argparse
from importlib import import_module

from jsonargparse import ArgumentParser

from hybridiff import __version__
from hybridiff.errors import UsageError, require_choice

SHELLS = ("bash", "zsh", "tcsh")


def completion_script(shell: str, commands: dict[str, str]) -> str:
    """The script that makes a shell complete commands, options and their choices.

    Args:
        shell: bash, zsh or tcsh.
        commands: line of help by name of a command.

    Raises:
        UsageError: another shell, or shtab is not installed.
    """
    require_choice("print_completion", shell, SHELLS)
    try:
        import_module("shtab")
    except ImportError as error:
        raise UsageError("print_completion needs shtab, which is not installed: pip install 'hybridiff[completion]'") from error
    whole = ArgumentParser("hybridiff", version=__version__)
    subcommands = whole.add_subcommands()
    for name, text in commands.items():
        own = import_module(f"hybridiff.cli.{name}").parser()
        subcommands.add_subcommand(name, own if isinstance(own, ArgumentParser) else _as_jsonargparse(own), help=text)
    return str(whole.get_completion_script(f"shtab-{shell}"))


def _as_jsonargparse(plain: argparse.ArgumentParser) -> ArgumentParser:
    """A parser with the options of a plain one, for completion alone."""
    found = ArgumentParser()
    for action in plain._actions:
        names = action.option_strings or [action.dest]
        if "--help" in names:
            continue
        if action.nargs == 0:
            found.add_argument(*names, action="store_true", help=action.help)
        else:
            found.add_argument(*names, help=action.help)
    return found
