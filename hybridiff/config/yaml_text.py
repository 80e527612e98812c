"""YAML text of a configuration, checked before anything is built from it."""

from dataclasses import dataclass, field
from typing import Any

import yaml

from hybridiff.errors import UsageError
from hybridiff.secrets import MAX_CONFIG_BYTES as MAX_BYTES

MAX_DEPTH = 40
MAX_NODES = 20_000  # with every alias counted as what it stands for
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class _Collection:
    """An open mapping or sequence.

    Args:
        anchor: name by which aliases refer to it; None if it has none.
        is_mapping: whether its children are keys and values by turns.
        nodes: number of nodes in it so far, itself included.
        children: number of its direct children so far.
        keys: scalar keys so far.
    """

    anchor: str | None
    is_mapping: bool
    nodes: int = 1
    children: int = 0
    keys: set[str] = field(default_factory=set)


def load_yaml(text: str, source: str) -> Any:
    """The value of a document that ``check_yaml`` accepts.

    Raises:
        UsageError: one line with the place.
    """
    check_yaml(text, source)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # the latter by what looks like a number or date and can be none
        raise UsageError(f"{source} can't be read: {' '.join(str(error).split())}") from error


def check_yaml(text: str, source: str) -> None:
    """Refuses YAML that is too large, too deep, refers to itself, multiplies by anchors, or gives a key twice.

    Args:
        text: the document.
        source: what messages call it.

    Raises:
        UsageError: one line with the place.
    """
    if len(text.encode()) > MAX_BYTES:
        raise UsageError(f"{source} has more than {MAX_BYTES} bytes; allowed: at most that many")
    try:
        _check_events(text, source)
    except yaml.YAMLError as error:
        raise UsageError(f"{source} is not YAML: {' '.join(str(error).split())}") from error


def _check_events(text: str, source: str) -> None:
    open_collections: list[_Collection] = []
    sizes: dict[str, int] = {}
    total = 0
    for event in yaml.parse(text, Loader=LOADER):
        place = f"{source}, line {event.start_mark.line + 1}"
        if isinstance(event, yaml.CollectionEndEvent):
            closed = open_collections.pop()
            _count(open_collections, closed.nodes)
            if closed.anchor:
                sizes[closed.anchor] = closed.nodes
            continue
        if not isinstance(event, yaml.NodeEvent):
            continue
        _check_key(event, open_collections, place)
        if isinstance(event, yaml.AliasEvent):
            nodes = sizes.get(event.anchor, 0)
            if not nodes and any(one.anchor == event.anchor for one in open_collections):
                raise UsageError(f"{place}: *{event.anchor} refers to what it is a part of; allowed: aliases of finished values")
        else:
            nodes = 1
        if isinstance(event, yaml.CollectionStartEvent):
            open_collections.append(_Collection(event.anchor, isinstance(event, yaml.MappingStartEvent)))
            if len(open_collections) > MAX_DEPTH:
                raise UsageError(f"{place}: more than {MAX_DEPTH} levels; allowed: at most {MAX_DEPTH}")
        else:
            _count(open_collections, nodes)
            if isinstance(event, yaml.ScalarEvent) and event.anchor:
                sizes[event.anchor] = 1
        total += nodes
        if total > MAX_NODES:
            raise UsageError(f"{place}: more than {MAX_NODES} values, aliases unfolded; allowed: at most {MAX_NODES}")


def _count(open_collections: list[_Collection], nodes: int) -> None:
    if open_collections:
        open_collections[-1].nodes += nodes


def _check_key(event: yaml.NodeEvent, open_collections: list[_Collection], place: str) -> None:
    """Counts a node as a child, and refuses a key that its mapping has already."""
    if not open_collections:
        return
    parent = open_collections[-1]
    is_key = parent.is_mapping and parent.children % 2 == 0
    parent.children += 1
    if is_key and isinstance(event, yaml.ScalarEvent):
        if event.value in parent.keys:
            raise UsageError(f"{place}: {event.value!r} is given twice; allowed: once")
        parent.keys.add(event.value)
