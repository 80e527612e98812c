"""``parallelize``: the library's front door."""

from typing import Any

import torch
from diffusers.hooks import HookRegistry

from hybridiff.config import GROUP_SIZES
from hybridiff.errors import UsageError, require, require_choice
from hybridiff.models.cuts.plans import require_plan
from hybridiff.models.inputs import find_denoiser
from hybridiff.parallel.exchange import Exchange
from hybridiff.parallel.fit import check_attention, check_guidance
from hybridiff.parallel.hook import HOOK_NAME, DenoiserHook
from hybridiff.parallel.layout import SEGMENTED
from hybridiff.parallel.mesh import Group, ensure_process_group, join_group, leave_group, meet, share_random_state
from hybridiff.parallel.placement import GroupPlacement
from hybridiff.schedule import Schedule, Trace, make_schedule

TIMEOUT_S = 120.0


class Handle:
    """A pipeline that runs on a group of ranks, until ``remove`` is called.

    Attributes:
        group: This rank's group.
        exchange: Counts the group's collectives and bytes.
    """

    def __init__(self, hook: DenoiserHook, exchange: Exchange, owns_group: bool) -> None:
        self._hook = hook
        self.exchange = exchange
        self.group: Group = exchange.group
        self._owns_group = owns_group

    @property
    def trace(self) -> Trace:
        """The record of the last run of the pipeline: the kind of each step, and the discrepancies.

        Raises:
            UsageError: the pipeline has not run yet.
        """
        if self._hook.generation is None:
            raise UsageError("there is no trace before the pipeline has run")
        return self._hook.generation.trace

    def remove(self) -> None:
        """Puts the pipeline back as it was, on every rank of the group; the world's process group stays."""
        self._hook.detach()
        if self._owns_group:
            leave_group(self.group)
        self._owns_group = False


def parallelize(
    pipeline: Any,
    schedule: str | Schedule = "full",
    group_size: int | None = None,
    *,
    group: Group | None = None,
    timeout_s: float | None = None,
    guidance_scale: float | None = None,
    across_nodes: bool | None = None,
) -> Handle:
    """Lets the ranks of a group run a stock Diffusers pipeline together: each rank calls it alike and gets the same images.

    Call it on every rank, under torchrun or with a process group of your own; ranks may come to it up to 30 minutes apart. The
    default random states of a group are made equal, so that noise drawn without a generator agrees as well. Apply adapters and
    attention processors before.

    Args:
        pipeline: A Diffusers pipeline that doubles the batch for classifier-free guidance.
        schedule: A name or a schedule object.
        group_size: Ranks that make one image together: 1, 2 (by default) or 4. Consecutive ranks form a group.
        group: An existing group, which has a size, a timeout and nodes of its own: instead of these three.
        timeout_s: Seconds after which a rank gives up waiting for its peers; 120 by default.
        guidance_scale: What the pipeline will be called with, if it does not tell that itself in its runs: PixArt's do not.
        across_nodes: Whether groups may have ranks on several nodes, whose network is then in every step; by default not.

    Raises:
        UsageError: an unknown schedule or group size, a world that does not split into groups, a group on several nodes, a
            pipeline that does not fit, an option that an existing group leaves no room for.
    """
    chosen = make_schedule(schedule)
    size = _check_group(group_size, group, timeout_s, across_nodes)
    denoiser = check_fit(pipeline, chosen, size, guidance_scale)
    owns_group = group is None
    device = next(denoiser.parameters()).device
    if group is None:
        if size > 1:
            ensure_process_group(device)
        group = join_group(size, TIMEOUT_S if timeout_s is None else timeout_s, bool(across_nodes))
    meet(group)
    if owns_group:
        share_random_state(group, device)
    exchange = Exchange(group)
    hook = DenoiserHook(pipeline, chosen, GroupPlacement(denoiser, exchange, chosen.kinds), guidance_scale)
    hook.attach(denoiser)
    return Handle(hook, exchange, owns_group)


def _check_group(group_size: int | None, group: Group | None, timeout_s: float | None, across_nodes: bool | None) -> int:
    """The size of the group."""
    require(timeout_s is None or timeout_s > 0, "timeout_s", timeout_s, "more than 0 seconds")
    if group is None:
        return 2 if group_size is None else group_size
    require(group_size in (None, group.size), "group_size", group_size, f"{group.size}, the size of the group that is given")
    for name, given in (("timeout_s", timeout_s), ("across_nodes", across_nodes)):
        require(given is None, name, given, "nothing next to a group that is made already")
    return group.size


def check_fit(pipeline: Any, schedule: Schedule, group_size: int, guidance_scale: float | None = None) -> torch.nn.Module:
    """The denoiser of a pipeline that a group can run.

    Raises:
        UsageError: it cannot, with the reason.
    """
    require_choice("group_size", group_size, GROUP_SIZES)
    denoiser = find_denoiser(pipeline)
    check_guidance(pipeline, guidance_scale)
    check_attention(pipeline, denoiser)
    if group_size > 1 and schedule.kinds & SEGMENTED:
        require_plan(denoiser)
    if HookRegistry.check_if_exists_or_initialize(denoiser).get_hook(HOOK_NAME) is not None:
        raise UsageError("this pipeline is parallelized already; call remove() on its handle first")
    return denoiser
