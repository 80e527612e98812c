"""The condition of a selection: SQL over the columns of one row, read by DuckDB's own parser and taken apart at its ANDs.

DuckDB gives the syntax tree as JSON. What is not about one row is refused there: subqueries, aggregates, windows, and functions
that give something else each time. Names of columns are resolved here, so that a wrong one is answered with those that exist.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hybridiff.errors import UsageError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_PREFIX = "SELECT * FROM rows WHERE\n"
_REFUSED = {
    "SUBQUERY": "a subquery",
    "WINDOW": "a window function",
    "STAR": "*",
    "PARAMETER": "a parameter",
    "POSITIONAL_REFERENCE": "a column by its position",
    "DEFAULT": "DEFAULT",
}
_ALLOWED = 'one condition on the columns of a row, such as "clip > 0.25 and not duplicate"'
_UNSTABLE = """SELECT function_name FROM duckdb_functions() GROUP BY function_name
    HAVING bool_and(function_type = 'scalar') AND count(*) FILTER (coalesce(stability, 'CONSISTENT') = 'CONSISTENT') = 0"""
_AGGREGATES = """SELECT function_name FROM duckdb_functions() GROUP BY function_name
    HAVING bool_and(function_type = 'aggregate')"""


@dataclass(frozen=True)
class Term:
    """One of the conditions that are joined by AND at the top.

    Args:
        text: the condition as DuckDB writes it.
        sql: the same, with the internal names of the columns.
    """

    text: str
    sql: str


def parse_condition(connection: "DuckDBPyConnection", where: str, resolve: Callable[[Sequence[str]], list[str]]) -> list[Term]:
    """The terms of a condition.

    Args:
        connection: any connection of DuckDB; nothing is run on it.
        where: the condition.
        resolve: gives the internal name of a column, from its dotted name; what follows is a field of a nested value.

    Raises:
        UsageError: a mistake in the condition.
    """
    statement = _parse(connection, where)
    node = statement["node"]
    _check_shape(node, where)
    aggregates, unstable = ({name for (name,) in connection.execute(query).fetchall()} for query in (_AGGREGATES, _UNSTABLE))
    found = []
    for tree in _conjuncts(node["where_clause"]):
        text = _text(connection, statement, tree)
        _check(tree, text, aggregates, unstable)
        found.append(Term(text, _text(connection, statement, _resolved(tree, resolve, frozenset()))))
    return found


def _parse(connection: "DuckDBPyConnection", where: str) -> dict[str, Any]:
    if "\0" in where:
        raise UsageError(f"--where is {where!r}; allowed: {_ALLOWED}")
    ((answer,),) = connection.execute("SELECT json_serialize_sql(?)", [f"{_PREFIX}{where}\n"]).fetchall()
    document = json.loads(answer)
    if document.get("error"):
        near = int(document.get("position") or len(_PREFIX)) - len(_PREFIX)
        rest = where[max(0, near) :].strip()
        at = f"at {rest[:40]!r}" if near >= 0 and rest else "at its end" if where.strip() else "as it is empty"
        hint = '; names that are words of SQL are written in double quotes, such as "full".psnr' if rest.startswith(".") else ""
        raise UsageError(f"--where can't be read {at}: {document.get('error_message')}{hint}; allowed: {_ALLOWED}")
    if len(document["statements"]) != 1:
        raise UsageError(f"--where holds several statements; allowed: {_ALLOWED}")
    statement: dict[str, Any] = document["statements"][0]
    return statement


def _check_shape(node: dict[str, Any], where: str) -> None:
    """Raises UsageError if more than a condition was given, such as a LIMIT or a UNION behind it."""
    plain = node["type"] == "SELECT_NODE" and node.get("where_clause") is not None
    others = ("modifiers", "group_expressions", "group_sets", "having", "sample", "qualify")
    if not plain or any(node.get(name) for name in others):
        raise UsageError(f"--where is {where!r}, which is more than a condition; allowed: {_ALLOWED}")


def _conjuncts(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if tree.get("type") == "CONJUNCTION_AND":
        for child in tree["children"]:
            yield from _conjuncts(child)
    else:
        yield tree


def _text(connection: "DuckDBPyConnection", statement: dict[str, Any], tree: dict[str, Any]) -> str:
    """A part of the tree as SQL, without the parentheses around it."""
    node = statement["node"] | {"select_list": [tree], "where_clause": None}
    document = {"error": False, "statements": [statement | {"node": node}]}
    ((text,),) = connection.execute("SELECT json_deserialize_sql(?)", [json.dumps(document)]).fetchall()
    text = str(text).removeprefix("SELECT ").rpartition(" FROM ")[0].strip()
    return text[1:-1] if _is_enclosed(text) else text


def _is_enclosed(text: str) -> bool:
    """Whether the first parenthesis closes at the end; quotes are skipped."""
    depth, quote = 0, ""
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "()":
            depth += 1 if letter == "(" else -1
        if depth == 0:
            return place > 0 and place == len(text) - 1
    return False


def _check(tree: Any, text: str, aggregates: set[str], unstable: set[str]) -> None:
    for node in _nodes(tree):
        if node["class"] in _REFUSED:
            raise UsageError(f"--where: {text} holds {_REFUSED[node['class']]}; allowed: {_ALLOWED}")
        name = str(node.get("function_name", "")).lower()
        if name in aggregates:
            raise UsageError(f"--where: {text} holds {name}(), which is about many rows; allowed: {_ALLOWED}")
        if name in unstable:
            allowed = "functions that give the same each time; hash(key) in place of random()"
            raise UsageError(f"--where: {text} holds {name}(), which differs from run to run; allowed: {allowed}")


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        if isinstance(tree.get("class"), str):
            yield tree
        for value in tree.values():
            yield from _nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _nodes(value)


def _resolved(tree: Any, resolve: Callable[[Sequence[str]], list[str]], bound: frozenset[str]) -> Any:
    """The tree with internal names; ``bound`` are the parameters of the lambdas around it."""
    if isinstance(tree, list):
        return [_resolved(one, resolve, bound) for one in tree]
    if not isinstance(tree, dict):
        return tree
    if tree.get("class") == "LAMBDA":
        own = {node["column_names"][0] for node in _nodes(tree["lhs"]) if node["class"] == "COLUMN_REF"}
        return tree | {"expr": _resolved(tree["expr"], resolve, bound | own)}
    if tree.get("class") == "COLUMN_REF":
        names = tree["column_names"]
        return tree if names[0] in bound else tree | {"column_names": resolve(names)}
    return {name: _resolved(value, resolve, bound) for name, value in tree.items()}
