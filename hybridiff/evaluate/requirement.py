"""``--require "psnr.p05 >= 35 and fid <= 5"``: parsed without ``eval``, checked against a result."""

import ast
import difflib
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from hybridiff.errors import UsageError

LONGEST = 2000  # characters
_ALLOWED = "comparisons of a metric with a number, such as psnr.p05 >= 35, joined by and, or, not and parentheses"
_COMPARISONS: dict[type[ast.cmpop], tuple[str, Callable[[float, float], bool]]] = {
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
    ast.Eq: ("==", operator.eq),
    ast.NotEq: ("!=", operator.ne),
}


@dataclass(frozen=True)
class Comparison:
    """One comparison: name, operator and number."""

    name: str
    symbol: str
    number: float

    def holds(self, values: Mapping[str, float | None]) -> bool | None:
        """Whether it holds; None if the value was not computed."""
        value = values[self.name]
        return None if value is None else next(f for s, f in _COMPARISONS.values() if s == self.symbol)(value, self.number)


@dataclass(frozen=True)
class Requirement:
    """A condition on a result.

    Args:
        text: text as given.
        comparisons: comparisons, in the text's order.
        tree: nested tuples of ``and``, ``or``, ``not`` and comparisons.
    """

    text: str
    comparisons: tuple[Comparison, ...]
    tree: Any

    @property
    def names(self) -> tuple[str, ...]:
        """The names that it compares, each once."""
        return tuple(dict.fromkeys(one.name for one in self.comparisons))

    def check_names(self, allowed: Collection[str], may_be: Callable[[str], bool] = lambda _: False) -> None:
        """Refuses names that no result will have.

        Args:
            allowed: known names.
            may_be: whether a result may turn out to have another one.

        Raises:
            UsageError: a name is not among ``allowed``, and none that may be.
        """
        for name in self.names:
            if name not in allowed and not may_be(name):
                near = difflib.get_close_matches(name, allowed, n=1)
                meant = f" (did you mean {near[0]}?)" if near else ""
                raise UsageError(f"--require names {name!r}{meant}; allowed: {', '.join(sorted(allowed))}")

    def failures(self, result: Mapping[str, Any]) -> list[str]:
        """What a result does not meet, a line for each comparison that does not hold; empty if the whole is met.

        Args:
            result: evaluation's result, as its JSON file has it.

        Raises:
            UsageError: the result has no value of a name.
        """
        values = named_values(result)
        self.check_names(values)
        if _met(self.tree, values):
            return []
        if all(isinstance(part, Comparison) for part in _conjuncts(self.tree)):
            missed = [one for one in self.comparisons if not one.holds(values)]
            return [f"{one.name} is {_text(values[one.name])}; required: {one.symbol} {one.number:g}" for one in missed]
        return [f"{self.text} does not hold: {', '.join(f'{name} is {_text(values[name])}' for name in self.names)}"]


def parse(text: str) -> Requirement:
    """Reads a requirement.

    Raises:
        UsageError: it is not made of comparisons of names with numbers.
    """
    try:
        if len(text) > LONGEST:
            raise ValueError
        comparisons: list[Comparison] = []
        tree = _tree(ast.parse(text.strip(), mode="eval").body, comparisons)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        shown = text if len(text) <= 200 else f"{text[:200]}..."
        raise UsageError(f"--require is {shown!r}; allowed: {_ALLOWED}") from error
    return Requirement(text, tuple(comparisons), tree)


def named_values(result: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers of a result by the names that a requirement uses: ``fid``, ``psnr.p05``, ``images.black``, ``rows.matched``."""
    values: dict[str, float | None] = {}
    for metric, figures in result.get("metrics", {}).items():
        values |= {f"{metric}.{name}": number for name, number in _numbers(figures).items()}
        main = figures.get("value", figures.get("mean"))
        values[metric] = None if main is None else float(main)
    for section in ("rows", "images"):
        values |= {f"{section}.{name}": number for name, number in _numbers(result.get(section, {})).items()}
    return values


def _numbers(figures: Mapping[str, Any]) -> dict[str, float | None]:
    known = {name: value for name, value in figures.items() if value is None or _is_number(value)}
    return {name: None if value is None else float(value) for name, value in known.items()}


def _is_number(value: object) -> bool:
    return value in ("inf", "-inf") or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _tree(node: ast.expr, comparisons: list[Comparison]) -> Any:
    if isinstance(node, ast.BoolOp):
        return "and" if isinstance(node.op, ast.And) else "or", *(_tree(value, comparisons) for value in node.values)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return "not", _tree(node.operand, comparisons)
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARISONS:
        symbol = _COMPARISONS[type(node.ops[0])][0]
        comparison = Comparison(_name(node.left), symbol, _number(node.comparators[0]))
        comparisons.append(comparison)
        return comparison
    raise ValueError


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    raise ValueError


def _number(node: ast.expr) -> float:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_number(node.operand)
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
        return float(node.value)
    raise ValueError


def _conjuncts(tree: Any) -> tuple[Any, ...]:
    """What must all be met: the parts of an ``and``, else the whole."""
    return tree[1:] if isinstance(tree, tuple) and tree[0] == "and" else (tree,)


def _met(tree: Any, values: Mapping[str, float | None]) -> bool | None:
    """Whether a condition is met; None, as SQL has it, where that depends on a value that was not computed."""
    if isinstance(tree, Comparison):
        return tree.holds(values)
    kind, *parts = tree
    found = [_met(part, values) for part in parts]
    if kind == "not":
        return None if found[0] is None else not found[0]
    decides = kind == "or"  # one part that is true decides an or, one that is false an and
    return decides if decides in found else None if None in found else not decides


def _text(value: float | None) -> str:
    return "not computed" if value is None else f"{value:.6g}"
