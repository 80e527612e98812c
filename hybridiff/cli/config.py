"""The options of ``hybridiff generate``: from the command line, from YAML files and from mappings, by jsonargparse."""

import dataclasses
import difflib
import json
import os
import re
from argparse import SUPPRESS
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from hybridiff.cli.help_in_words import WordsParser, in_words
from hybridiff.cli.resources import shipped_configs
from hybridiff.cli.schedule_option import (
    PARSER_MODE,
    SCHEDULE_OPTIONS,
    SCHEDULES_ALLOWED,
    explain_schedule,
    instantiate_schedule,
)
from hybridiff.config import JobConfig, PromptSource
from hybridiff.config.yaml_text import check_yaml, load_yaml
from hybridiff.errors import UsageError, access_error
from hybridiff.schedule import Schedule, class_path, schedule_spec
from hybridiff.secrets import config_text

SECTIONS: dict[str, Any] = get_type_hints(JobConfig)
USAGE = "hybridiff generate [--config NAME|FILE] --model.path MODEL --data.prompts TABLE --output.url DIRECTORY [--help]"
DESCRIPTION = "Tables of prompts in, a corpus of images as WebDataset and Parquet out. The same command again resumes."
FLAGS = ("dry_run", "retry_failed")


@dataclass(frozen=True)
class Arguments:
    """The command line, parsed.

    Args:
        config: all options of the job.
        dry_run: whether to print the plan and stop.
        only: key of the one row to generate again and compare.
        retry_failed: whether to generate failed rows again.

    Raises:
        UsageError: options that contradict each other.
    """

    config: JobConfig
    dry_run: bool = False
    only: str | None = None
    retry_failed: bool = False

    def __post_init__(self) -> None:
        reads = "dry_run" if self.dry_run else "only" if self.only is not None else ""
        if self.dry_run and self.only is not None:
            raise UsageError("dry_run is given with only; allowed: one of them")
        if reads and self.retry_failed:
            raise UsageError(f"retry_failed is given with {reads}, which writes nothing; allowed: one of them")


def parse(arguments: list[str]) -> Arguments:
    """The arguments of the command line and of the YAML files that it names.

    Raises:
        UsageError: an unknown option, or a value that is not allowed.
    """
    given = _fold_init_args([_read(name, value) for name, value in _pairs(arguments)])
    generate = parser()
    try:
        options = generate.parse_args([name if value is None else f"{name}={value}" for name, value in given])
        _restore_texts(options, given)
        sections = generate.instantiate(options, instantiators=[(instantiate_schedule, Schedule, True)])
    except UsageError:
        raise
    except (ArgumentError, ValueError, TypeError, OSError) as error:
        raise UsageError(explain(" ".join(str(error).split()))) from error
    except Exception as error:  # the module of an own schedule may raise anything, and so may its class
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"parallel.schedule can't be made: {reason}; allowed: {SCHEDULES_ALLOWED}") from error
    flags = {name: getattr(options, name) for name in FLAGS}
    return Arguments(JobConfig(**{name: sections[name] for name in SECTIONS}), only=options.only, **flags)


def from_mapping(*options: Mapping[str, Any] | JobConfig | str | None) -> JobConfig:
    """The options of a job from nested mappings, as a YAML file has them; later ones win.

    Args:
        options: mappings, names of shipped configurations or of YAML files, or a checked configuration. In mappings,
            ``data.prompts`` may hold own sources as objects.

    Raises:
        UsageError: an unknown option, or a value that is not allowed.
    """
    given, own = [], _OwnSources()
    for one in options:
        plain = as_mapping(one) if isinstance(one, JobConfig) else one
        try:
            if plain:
                given.append(f"--config={plain if isinstance(plain, str) else json.dumps(own.named(plain))}")
        except (TypeError, ValueError) as error:
            raise UsageError(f"options are not plain values: {error}; allowed: what a YAML file can hold") from error
    config = parse(given).config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, prompts=own.restored(config.data.sources)))


class _OwnSources:
    """Prompt sources that are objects, which YAML cannot hold: each has a name while options are parsed."""

    def __init__(self) -> None:
        self._objects: dict[str, PromptSource] = {}

    def named(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with names in place of objects."""
        data = options.get("data")
        if not isinstance(data, Mapping) or "prompts" not in data:
            return dict(options)
        prompts = data["prompts"]
        if isinstance(prompts, (list, tuple)) and not isinstance(prompts, PromptSource):
            prompts = [self._name(prompt) for prompt in prompts]
        else:
            prompts = self._name(prompts)
        return {**options, "data": {**data, "prompts": prompts}}

    def restored(self, prompts: list[str | PromptSource]) -> list[Any]:
        """The prompts with the objects in place of their names."""
        return [self._objects.get(prompt, prompt) if isinstance(prompt, str) else prompt for prompt in prompts]

    def _name(self, prompt: Any) -> Any:
        if not isinstance(prompt, PromptSource) or isinstance(prompt, type):
            return prompt
        name = f"<{type(prompt).__name__} object {id(prompt)}>"
        self._objects[name] = prompt
        return name


def as_mapping(config: JobConfig) -> dict[str, Any]:
    """A checked configuration as a YAML file nests it; own prompt sources stay objects."""
    options: dict[str, Any] = {name: dict(vars(getattr(config, name))) for name in SECTIONS}
    options["model"] = dataclasses.asdict(config.model)  # with its LoRA weights, which are not plain values
    options["parallel"]["schedule"] = schedule_spec(config.parallel.schedule)
    return options


def parser() -> ArgumentParser:
    """The parser of all options."""
    found = WordsParser("hybridiff generate", usage=USAGE, description=DESCRIPTION, exit_on_error=False, parser_mode=PARSER_MODE)
    found.add_argument("--config", action="config", help="YAML file with any of the options below, or a shipped one's name.")
    next(action for action in found._actions if action.dest == "print_config").help = "Print all options as YAML and exit."
    found.add_argument("--dry_run", action="store_true", help="Print the plan and stop; nothing is written.")
    help_only = "Generate the row of this key again, in its batch, and compare it with the corpus: exit code 0 if equal, else 1."
    found.add_argument("--only", metavar="KEY", help=help_only)
    found.add_argument("--retry_failed", action="store_true", help="Generate only failed rows, of committed shards.")
    for name, section in SECTIONS.items():
        found.add_class_arguments(section, name)
        group = (found.groups or {})[name]
        group.title = f"{name}: {group.title}"
        for action in group._group_actions:
            if action.dest == name:
                action.help = SUPPRESS  # the whole section as one value
    return found


def option_types() -> dict[str, Any]:
    """The type of each option, by its full name."""
    found: dict[str, Any] = {"config": str, "only": str, **dict.fromkeys(FLAGS, bool)}
    for name, section in SECTIONS.items():
        found |= {f"{name}.{option}": hint for option, hint in get_type_hints(section).items()}
    return found


def nearest(given: str, names: list[str]) -> str | None:
    """The name that was probably meant: equal but for case, dashes and blanks, else without its section, else similar."""
    by_plain = {_plain(name): name for name in names}
    if found := by_plain.get(_plain(given)):
        return found
    last = _plain(given).rpartition(".")[2]
    tails = [name for name in names if _plain(name).rpartition(".")[2] == last]
    if "." not in given and not tails:
        similar = difflib.get_close_matches(last, [name.rpartition(".")[2] for name in by_plain], n=1, cutoff=0.8)
        tails = [name for name in names if similar and _plain(name).rpartition(".")[2] == similar[0]]
    near = difflib.get_close_matches(_plain(given), [_plain(name) for name in tails] or list(by_plain), n=1, cutoff=0.6)
    return by_plain[near[0]] if near else tails[0] if tails else None


def explain(error: str) -> str:
    """A message of jsonargparse in words: what was given, what is allowed."""
    if of_schedule := re.fullmatch(r"(?:Parser key \"parallel\.schedule\"|--parallel\.schedule\.help): (.*)", error):
        return explain_schedule(of_schedule[1])
    types = option_types()
    lacks = r"argument --([\w.]+).*: expected one argument$|Parser key \"(\w+)\": Unable to load config "
    if lacking := re.match(lacks, error):
        name = lacking[1] or lacking[2]
        if name in types:
            return f"{name} has no value; allowed: {_allowed(name, types[name])}"
        if name in SECTIONS:
            first = next(one for one in types if one.startswith(f"{name}."))
            return f"--{name} is a section of options; allowed: one of them, such as --{first}"
    if flag := re.fullmatch(r"argument --(\w+): ignored explicit argument (.*)", error):
        return f"{flag[1]} is {flag[2]}; allowed: --{flag[1]}, without a value"
    for pattern in (
        r"unrecognized arguments: (.*)",
        r"Group '(.+)' does not accept option '(.+)'",
        r"Option '(.+)' is not accepted",
    ):
        if unknown := re.search(pattern, error):
            return _unknown_option(".".join(unknown.groups()), list(types))
    keys = re.findall(r"Parser key \"([^\"]+)\":", error)
    *_, value = [None, *re.split(r"(?:Given value|Got value):\s?", error)[1:]]
    if not keys or value is None or keys[-1] not in types:
        return error
    name, given = keys[-1], value if value.isdigit() else repr(value)
    return f"{name} is {given}; allowed: {_allowed(name, types[name])}"


def _allowed(name: str, hint: Any) -> str:
    return "a number of bytes" if name.endswith("_bytes") else in_words(hint)


def _unknown_option(given: str, names: list[str]) -> str:
    if given.startswith("--") or not given.startswith("-"):
        name = given.split()[0].split("=")[0].removeprefix("--")
        meant = nearest(name, names)
        shown = name if given.startswith("--") or "." in given else given
        return f"there is no option {shown!r}" + (f"; did you mean {meant}?" if meant else "; allowed: those of --help")
    return f"there is no option {given!r}; allowed: those of --help"


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", re.sub(r"\s*\.\s*", ".", name.strip().lower()))


def _pairs(arguments: list[str]) -> Iterator[tuple[str, str | None]]:
    """Options and their values, joined by = or given as two arguments."""
    waiting: str | None = None
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if waiting is not None:
            yield waiting, argument
            waiting = None
        elif argument.startswith("--") and not equals and ("." in name or name in ("--config", "--only")):
            waiting = name
        else:
            yield name, value if equals else None
    if waiting is not None:
        yield waiting, None


def _read(name: str, value: str | None) -> tuple[str, str | None]:
    """An option with the text of the file that it names, or with the class path of the schedule that it names."""
    if name != "--config" and value is not None and value.lstrip().startswith(("{", "[")):
        _check_value(name.removeprefix("--"), value)
    if name == "--config":
        if not value:
            raise UsageError(f"config is not given; allowed: a YAML file, or one of {', '.join(shipped_configs())}")
        return name, _config_text(value)
    if name in SCHEDULE_OPTIONS and not value:
        raise UsageError(f"{name.removeprefix('--')} has no value; allowed: {SCHEDULES_ALLOWED}")
    whole = option_types().get(name.removeprefix("--").rpartition(".")[0])  # of which this is a part
    kinds = [get_origin(one) for one in (whole, *get_args(whole))]
    if value is None and (whole is Schedule or dict in kinds):
        raise UsageError(f"{name.removeprefix('--')} has no value; allowed: {name}=VALUE")
    return name, class_path(value) if value and name in SCHEDULE_OPTIONS else value


def _check_value(name: str, value: str) -> None:
    """Refuses a list or mapping of the command line that could not be in a configuration; what is no YAML is text."""
    try:
        if option_types().get(name) is not str:
            check_yaml(value, name)
    except UsageError as error:
        if not isinstance(error.__cause__, yaml.YAMLError):
            raise


def _config_text(given: str) -> str:
    """The text of a configuration: a file's, a shipped one's by name, or the text itself, as the parser may read it.

    Raises:
        UsageError: there is no such file, or it does not hold options.
    """
    shipped = shipped_configs()
    path, source = Path(os.path.expanduser(given)), f"config {given}"
    if given.lstrip().startswith("{"):
        text, source = given, "config"
    elif not path.is_file() and given in shipped:
        text = shipped[given].read_text()
    else:
        try:
            text = config_text(path)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            meant = nearest(given, list(shipped))
            hint = f"; did you mean {meant}?" if meant else ""
            allowed = f"a YAML file, or one of {', '.join(shipped)}{hint}"
            raise access_error(f"{source} can't be read ({reason}); allowed: {allowed}", error) from error
    options = load_yaml(text, source)
    _check_sections(options, source)
    return text if options else "{}"


def _check_sections(options: Any, source: str) -> None:
    """Refuses a configuration that is no mapping of sections, or whose names are twice there or have blanks."""
    if options is None:
        return
    if not isinstance(options, dict):
        raise UsageError(f"{source} holds {options!r}; allowed: sections such as model and data, with options in them")
    for name, section in options.items():
        if name in SECTIONS and not isinstance(section, dict):
            raise UsageError(f"{source}: {name} is {section!r}; allowed: options of the section {name}")
        if not isinstance(name, str):
            raise UsageError(f"{source}: there is no option {name!r}; allowed: those of --help")
        for full in [name, *(f"{name}.{one}" for one in section)] if isinstance(section, dict) else [name]:
            if re.search(r"\s", full):
                meant = nearest(full, list(option_types())) or "those of --help"
                raise UsageError(f"{source}: there is no option {full!r}; allowed: {meant}")
        group, _, option = name.partition(".")
        if option and option in (options.get(group) or {}):
            raise UsageError(f"{source}: {name!r} is given twice; allowed: once")


def _fold_init_args(given: list[tuple[str, str | None]]) -> list[tuple[str, str | None]]:
    """Collects ``--trainer.logger.NAME=VALUE`` as init_args of the class that ``--trainer.logger`` names."""
    for option in ("--trainer.logger", "--trainer.callbacks"):
        class_paths = [value for name, value in given if name == option]
        parts = {name.removeprefix(f"{option}."): value for name, value in given if name.startswith(f"{option}.")}
        if class_paths and parts:
            init_args = {name: _init_arg(value) for name, value in parts.items()}
            given = [(name, value) for name, value in given if name != option and not name.startswith(f"{option}.")]
            given.append((option, json.dumps({"class_path": class_paths[-1], "init_args": init_args})))
    return given


def _init_arg(value: str | None) -> Any:
    """A number, true, false, list or mapping where the command line has one, else text."""
    if value is None:
        return None
    try:
        read = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        return value
    return read if isinstance(read, bool | int | float) or value.lstrip().startswith(("{", "[")) else value


def _restore_texts(options: Any, given: list[tuple[str, str | None]]) -> None:
    """Gives text options what the command line has, also where YAML would read something else in it: ~, null, #tag, a: b.

    Of options that are lists or mappings too, a value is one where it begins with a bracket.
    """
    types = option_types()
    for option, value in dict(given).items():
        name = option.removeprefix("--")
        hint = types.get(name)
        if value is None or str not in (hint, *get_args(hint)) or value.lstrip().startswith(("{", "[")):
            continue
        with suppress(yaml.YAMLError, ValueError):
            if not isinstance(options[name], str) and options[name] == yaml.safe_load(value):
                options[name] = value
