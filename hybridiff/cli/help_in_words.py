"""Help and messages without Python's own notation: types as words, choices shown."""

import textwrap
from argparse import SUPPRESS, Action
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse import ArgumentParser, DefaultHelpFormatter

TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}


def in_words(hint: Any) -> str:
    """A type as help and messages name it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        given = [one for one in arguments if one is not NoneType and get_origin(one) is not list]
        single = dict.fromkeys("class_path with init_args" if one == dict[str, Any] else in_words(one) for one in given)
        lists = [f", or {'a list' if single else in_words(one)}" for one in arguments if get_origin(one) is list]
        return "".join([" or ".join(single), *lists]).removeprefix(", or ")
    if origin is Literal:
        return ", ".join(map(str, arguments))
    if origin in (list, tuple):
        return f"a list of {in_words(arguments[0]).removeprefix('a ')}"
    if origin is dict or hint is dict:
        return "names with values"
    return TYPES.get(hint.__name__, hint.__name__)


class WordsParser(ArgumentParser):
    """A parser whose help is in words, also that of a schedule, which jsonargparse makes of the same class."""

    def __init__(self, *args: Any, usage: str = SUPPRESS, **options: Any) -> None:
        super().__init__(*args, usage=usage, formatter_class=_WordsFormatter, **options)


class _WordsFormatter(DefaultHelpFormatter):
    """Help with types as words, choices shown, and nothing of Python's own notation."""

    def _get_type_str(self, action: Action) -> str | None:
        hint = getattr(action, "_typehint", action.type)
        return None if hint is None else in_words(hint)

    def _get_help_string(self, action: Action) -> str:
        kind = self._get_type_str(action)
        plain = (action.help or "").rstrip()
        if plain[1:2].isalpha():  # and not a symbol, such as g
            plain = plain[:1].upper() + plain[1:]
        if kind is None or action.dest == "config":
            return plain
        if action.dest.endswith(".help"):
            return "Show the options of a schedule and exit."
        default, hint = action.default, getattr(action, "_typehint", None)
        if isinstance(default, Mapping) and "class_path" in default:
            kind, default = "a name or class path", str(default["class_path"]).rpartition(".")[2].lower()
        noted = [] if hint is bool or get_origin(hint) is Literal else [kind]  # the choices stand beside the option already
        if default not in (None, "", SUPPRESS, [], {}):
            noted.append(f"default: {str(default).lower() if isinstance(default, bool) else default}")
        return f"{plain} ({'; '.join(noted)})".replace("%", "%%") if noted else plain

    def _format_usage(self, usage: str | None, *others: Any) -> str:
        if usage in (None, SUPPRESS):
            return super()._format_usage(usage, *others)
        width = self._width - self._current_indent
        return f"{textwrap.fill(f'usage: {usage}', width, subsequent_indent=' ' * 7, break_on_hyphens=False)}\n\n"

    def _format_action_invocation(self, action: Action) -> str:
        return ", ".join(
            name for name in super()._format_action_invocation(action).split(", ") if not name.split()[0].endswith("+")
        )
