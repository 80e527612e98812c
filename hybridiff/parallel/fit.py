"""Which pipelines fit: what is refused before anything runs."""

import ast
import inspect
import re
import textwrap
from functools import cache
from typing import Any

import torch

from hybridiff.errors import UsageError
from hybridiff.models.guidance import tells_guidance

MIXING = re.compile("PAG|CrossFrame|StyleAligned|Shared")  # in names of attention processors that look from one row at another
PARTING = {"chunk": 1, "split": 1, "tensor_split": 1, "unbind": 0}  # methods of tensors, and where their dim stands


def check_guidance(pipeline: Any, guidance_scale: float | None) -> None:
    """Refuses a pipeline of whose guidance nothing is known, and a scale beside what a pipeline tells itself.

    Args:
        guidance_scale: What the caller says that the pipeline runs with.

    Raises:
        UsageError: neither or both of them tell.
    """
    name = type(pipeline).__name__
    tells = tells_guidance(type(pipeline))
    if guidance_scale is None and not tells:
        raise UsageError(f"{name} does not tell its guidance scale; allowed: guidance_scale=, the one that it is called with")
    if guidance_scale is not None and tells:
        raise UsageError(f"guidance_scale is {guidance_scale!r}; allowed: None, as {name} tells its own in each run")


def check_attention(pipeline: Any, denoiser: torch.nn.Module) -> None:
    """Refuses what computes one row of a batch from another, which ranks that hold different rows cannot do.

    Raises:
        UsageError: the pipeline perturbs attention in further rows, or an attention processor mixes rows.
    """
    if any(base.__name__ == "PAGMixin" for base in type(pipeline).__mro__):
        raise UsageError(f"{type(pipeline).__name__} adds perturbed rows to the batch; allowed: the same pipeline without PAG")
    processors: set[Any] = {type(module.processor) for module in denoiser.modules() if hasattr(module, "processor")}
    for name in sorted(processor.__name__ for processor in processors if _mixes(processor)):
        raise UsageError(
            f"the attention processor {name} computes rows of a batch from one another, and the ranks of a group hold different "
            "rows; allowed: processors that treat each row alone, such as AttnProcessor2_0"
        )


@cache
def _mixes(processor: type) -> bool:
    """Whether a class of processors, by its name or source, takes a batch apart by rows; one without source is trusted."""
    own = [kind for kind in processor.__mro__ if kind not in (object, torch.nn.Module)]
    return any(MIXING.search(kind.__name__) for kind in own) or any(map(_parts_rows, own))


def _parts_rows(kind: type) -> bool:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):  # defined in a console, or built in
        return False
    return any(_parts_by_call(node) or _parts_by_index(node) for node in ast.walk(tree))


def _parts_by_call(node: ast.AST) -> bool:
    """x.chunk(2), torch.chunk(x, 2, dim=0) and the like, along the first dimension; not of what belongs to self, nor of text."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in PARTING):
        return False
    of_torch = ast.unparse(node.func.value) == "torch"
    arguments = node.args[1:] if of_torch else node.args
    parted = ast.unparse(node.args[0] if of_torch and node.args else node.func.value)
    text = any(isinstance(argument, ast.Constant) and isinstance(argument.value, str) for argument in arguments)
    if parted.startswith("self.") or text or not (arguments or node.keywords or node.func.attr == "unbind"):
        return False
    by_name = [keyword.value for keyword in node.keywords if keyword.arg == "dim"]
    dim = [*by_name, *arguments[PARTING[node.func.attr] :]]
    return not dim or ast.unparse(dim[0]) == "0"


def _parts_by_index(node: ast.AST) -> bool:
    """x[: len(x) // 2] and the like."""
    if not (isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice)):
        return False
    bounds = [bound for bound in (node.slice.lower, node.slice.upper) if bound is not None]
    return any(isinstance(part, ast.FloorDiv) for bound in bounds for part in ast.walk(bound))
