"""MkDocs hook: writes tables from the code in place of ``<!-- options -->``, ``<!-- schedules -->`` and ``<!-- columns -->``."""

import inspect
import sys
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, get_type_hints

from docstring_parser.google import GoogleParser

sys.path.insert(0, str(Path(__file__).parent.parent))

from hybridiff.cli.help_in_words import in_words

HEADER = "| option | type | default | meaning |\n|---|---|---|---|"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fills the markers of a page."""
    for name, write in (("options", write_sections), ("schedules", write_schedules), ("columns", write_columns)):
        if (marker := f"<!-- {name} -->") in markdown:
            markdown = markdown.replace(marker, write())
    return markdown


def write_sections() -> str:
    """A table for each section of the configuration."""
    from hybridiff.config import JobConfig

    sections = ((section.name, _section_class(section)) for section in fields(JobConfig))
    return "\n\n".join(f"## `{name}`\n\n{_table(kind, f'{name}.')}" for name, kind in sections)


def write_schedules() -> str:
    """A table for each built-in schedule."""
    from hybridiff.schedule import SCHEDULES

    return "\n\n".join(_schedule(name, kind) for name, kind in SCHEDULES.items())


def write_columns() -> str:
    """A table of the columns of a corpus."""
    from hybridiff.columns import COLUMNS, IMAGE, IMAGE_MEANING, USER_MEANING

    rows = [(f"`{column.name}`", f"`{column.type}`", column.meaning) for column in COLUMNS]
    rows.append((f"`{IMAGE.name}`", f"`{IMAGE.type}`", f"with `output.embed_images`: {IMAGE_MEANING}"))
    rows.append(("all others", "", USER_MEANING))
    return "\n".join(["| column | type | meaning |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)])


def _schedule(name: str, kind: Any) -> str:
    summary = inspect.getdoc(kind).split("\n\n")[0].replace("\n", " ")
    return f"### `{name}`\n\n{summary}\n\n{_table(kind, 'parallel.schedule.') if fields(kind) else 'It has no options.'}"


def _section_class(section: Field[Any]) -> Any:
    from hybridiff import config

    kind = section.type
    return getattr(config, kind) if isinstance(kind, str) else kind


def _table(kind: Any, prefix: str) -> str:
    described = {given.arg_name: given.description or "" for given in GoogleParser().parse(inspect.getdoc(kind) or "").params}
    missing = [option.name for option in fields(kind) if option.name not in described]
    assert not missing, f"{kind.__name__} does not describe {', '.join(missing)}"
    types = {name: in_words(hint) for name, hint in get_type_hints(kind).items()}
    rows = [_row(option, f"{prefix}{option.name}", types[option.name], described[option.name]) for option in fields(kind)]
    return "\n".join([HEADER, *rows])


def _row(option: Field[Any], name: str, kind: str, description: str) -> str:
    cells = [f"`{name}`", kind, _default(option), " ".join(description.split())]
    return f"| {' | '.join([*cells[:3], cells[3].replace('|', chr(92) + '|')])} |"


def _default(option: Field[Any]) -> str:
    if option.default is not MISSING:
        value = option.default
    elif option.default_factory is not MISSING:
        value = option.default_factory()
    else:
        return "required"
    if value is None or value in ([], (), "", {}):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{type(value).__name__.lower() if hasattr(value, 'begin') else value}`"
