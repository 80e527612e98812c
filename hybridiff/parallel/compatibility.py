"""Checks that a pipeline can run on a group, before anything runs."""

import ast
import inspect
import re
import textwrap
from functools import cache
from typing import Any

import torch
from diffusers.hooks import HookRegistry

from hybridiff.config import GROUP_SIZES
from hybridiff.errors import UsageError, require_choice
from hybridiff.models.cuts.plans import no_plan, plan_of
from hybridiff.models.guidance import reports_guidance
from hybridiff.models.inputs import find_denoiser
from hybridiff.parallel.rank_work import needs_segments
from hybridiff.schedule import Schedule

HOOK_NAME = "hybridiff"  # of the hook that parallelize installs on the denoiser
MIXING = re.compile("PAG|CrossFrame|StyleAligned|Shared")  # in names of attention processors that mix rows
SPLITTING = {"chunk": 1, "split": 1, "tensor_split": 1, "unbind": 0}  # tensor methods, and the position of their dim


def check_guidance(pipeline: Any, guidance_scale: float | None) -> None:
    """Checks that the guidance scale is known from either the pipeline or the caller.

    Args:
        pipeline: stock Diffusers pipeline.
        guidance_scale: guidance scale given by the caller.

    Raises:
        UsageError: it is known from neither or from both.
    """
    name = type(pipeline).__name__
    reports = reports_guidance(type(pipeline))
    if guidance_scale is None and not reports:
        raise UsageError(
            f"{name} does not report its guidance scale; allowed: guidance_scale=, the one that it is called with, or a "
            f"description of where it keeps it, hybridiff.models.families.register_family({name}, ...)"
        )
    if guidance_scale is not None and reports:
        raise UsageError(f"guidance_scale is {guidance_scale!r}; allowed: None, as {name} reports its own in each run")


def check_attention(pipeline: Any, denoiser: torch.nn.Module) -> None:
    """Checks that no attention computes one row of a batch from another, as ranks hold different rows, and nothing is cached.

    Raises:
        UsageError: the pipeline adds rows with perturbed attention, an attention processor mixes rows, or one of Diffusers'
            caches of activations is enabled, whose state depends on which calls are made and in which order.
    """
    if getattr(denoiser, "is_cache_enabled", False):
        raise UsageError(
            f"a cache of Diffusers' is enabled on the {type(denoiser).__name__}, and schedules leave out calls of their own; "
            "allowed: one of the two, after disable_cache()"
        )
    if any(base.__name__ == "PAGMixin" for base in type(pipeline).__mro__):
        raise UsageError(f"{type(pipeline).__name__} adds perturbed rows to the batch; allowed: the same pipeline without PAG")
    processors: set[Any] = {type(module.processor) for module in denoiser.modules() if hasattr(module, "processor")}
    for name in sorted(processor.__name__ for processor in processors if _mixes(processor)):
        raise UsageError(
            f"the attention processor {name} mixes rows of a batch, and the ranks of a group hold different rows; allowed: "
            "processors that compute each row by itself, such as AttnProcessor2_0"
        )


def fit_schedule(schedule: Schedule, denoiser: torch.nn.Module, group_size: int) -> Schedule:
    """The schedule for a denoiser on a group of ranks: without half steps where they need segments and it cannot be cut.

    Raises:
        UsageError: the denoiser cannot be cut, and the schedule cannot do without half or pipelined steps.
    """
    if not needs_segments(schedule, group_size) or why_uncut(denoiser, group_size) is None:
        return schedule
    fitted = schedule.without_half_steps()
    if fitted is None and plan_of(denoiser) is None:
        raise no_plan(type(denoiser).__name__, f"schedule {schedule.name}")
    if fitted is None:
        raise UsageError(
            f"group_size is {group_size}, and {why_uncut(denoiser, group_size)}, so schedule {schedule.name} cannot run; "
            "allowed: a schedule that can do without half steps (adaptive, full), or a smaller group"
        )
    return fitted


def why_uncut(denoiser: torch.nn.Module, group_size: int) -> str | None:
    """Why a denoiser cannot be cut into a segment for each rank of a group; None if it can."""
    name, blocks = type(denoiser).__name__, plan_of(denoiser)
    if blocks is None:
        return f"{name} has no plan where to cut it"
    return f"{name} has {len(blocks)} blocks, fewer than ranks" if len(blocks) < group_size else None


def check_compatible(
    pipeline: Any, schedule: Schedule, group_size: int, guidance_scale: float | None = None
) -> tuple[torch.nn.Module, Schedule]:
    """The denoiser of a pipeline and the schedule for it, after all checks that it can run with a schedule on a group.

    Args:
        pipeline: stock Diffusers pipeline.
        schedule: schedule of its runs.
        group_size: ranks of the group.
        guidance_scale: see ``parallelize``.

    Returns:
        The denoiser, and the schedule as of ``fit_schedule``.

    Raises:
        UsageError: it cannot run, with the reason.
    """
    require_choice("group_size", group_size, GROUP_SIZES)
    denoiser = find_denoiser(pipeline)
    check_guidance(pipeline, guidance_scale)
    check_attention(pipeline, denoiser)
    fitted = fit_schedule(schedule, denoiser, group_size)
    if HookRegistry.check_if_exists_or_initialize(denoiser).get_hook(HOOK_NAME) is not None:
        raise UsageError("this pipeline is parallelized already; call remove() on its handle first")
    return denoiser, fitted


@cache
def _mixes(processor: type) -> bool:
    """Whether a processor class splits a batch by rows, by its name or source; a class without source is assumed not to."""
    own = [kind for kind in processor.__mro__ if kind not in (object, torch.nn.Module)]
    return any(MIXING.search(kind.__name__) for kind in own) or any(map(_splits_rows, own))


def _splits_rows(kind: type) -> bool:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):  # defined in a console, or built in
        return False
    return any(_splits_by_call(node) or _splits_by_index(node) for node in ast.walk(tree))


def _splits_by_call(node: ast.AST) -> bool:
    """x.chunk(2), torch.chunk(x, 2, dim=0) and the like along the first dimension; not of attributes of self, nor of text."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in SPLITTING):
        return False
    of_torch = ast.unparse(node.func.value) == "torch"
    arguments = node.args[1:] if of_torch else node.args
    split = ast.unparse(node.args[0] if of_torch and node.args else node.func.value)
    text = any(isinstance(argument, ast.Constant) and isinstance(argument.value, str) for argument in arguments)
    if split.startswith("self.") or text or not (arguments or node.keywords or node.func.attr == "unbind"):
        return False
    by_name = [keyword.value for keyword in node.keywords if keyword.arg == "dim"]
    dim = [*by_name, *arguments[SPLITTING[node.func.attr] :]]
    return not dim or ast.unparse(dim[0]) == "0"


def _splits_by_index(node: ast.AST) -> bool:
    """x[: len(x) // 2] and the like."""
    if not (isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice)):
        return False
    bounds = [bound for bound in (node.slice.lower, node.slice.upper) if bound is not None]
    return any(isinstance(part, ast.FloorDiv) for bound in bounds for part in ast.walk(bound))
