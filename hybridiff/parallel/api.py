"""``parallelize``: the library's entry point."""

import logging
from types import TracebackType
from typing import Any

from hybridiff.errors import UsageError, require, require_positive
from hybridiff.models.execution import execution_device
from hybridiff.models.inputs import find_denoiser
from hybridiff.parallel.compatibility import check_compatible, why_uncut
from hybridiff.parallel.exchange import Exchange
from hybridiff.parallel.hook import DenoiserHook
from hybridiff.parallel.mesh import (
    Group,
    barrier,
    default_group_size,
    ensure_process_group,
    join_group,
    leave_group,
    share_random_state,
)
from hybridiff.parallel.placement import GroupPlacement
from hybridiff.schedule import Schedule, Trace, make_schedule

_LOG = logging.getLogger(__name__)

TIMEOUT_S = 120.0


class Handle:
    """A pipeline that runs on a group of ranks until ``remove`` is called, or to the end of a ``with`` block.

    Attributes:
        group: this rank's group.
        exchange: the group's collectives, with counts of collectives and bytes.
    """

    def __init__(self, hook: DenoiserHook, exchange: Exchange, owns_group: bool) -> None:
        self._hook = hook
        self.exchange = exchange
        self.group: Group = exchange.group
        self._owns_group = owns_group
        self._removed = False

    @property
    def schedule(self) -> Schedule:
        """The schedule of the pipeline's runs: without half steps where the denoiser cannot be cut for several ranks."""
        return self._hook.schedule

    @property
    def trace(self) -> Trace:
        """The record of the pipeline's last run: the kind of each step, and the discrepancies.

        Raises:
            UsageError: the pipeline has not run yet.
        """
        if self._hook.generation is None:
            raise UsageError("there is no trace before the pipeline has run")
        return self._hook.generation.trace

    def remove(self) -> None:
        """Restores the pipeline, on every rank of the group; the world's process group stays. A second call does nothing."""
        if self._removed:
            return
        self._removed = True
        self._hook.detach()
        if self._owns_group:
            leave_group(self.group)

    def abandon_run(self) -> None:
        """Drops a run that all ranks of the group have left before its end, and waits for the others.

        Raises:
            PeerLost: not all of them left it, or not after the same collective.
        """
        self._hook.abandon_run()

    def __enter__(self) -> "Handle":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.remove()

    def __repr__(self) -> str:
        pipeline, run = type(self._hook.pipeline).__name__, self._hook.generation
        state = "removed" if self._removed else f"rank {self.group.rank} of a group of {self.group.size}"
        return f"Handle({pipeline}, {self.schedule!r}, {state}, last run: {'none' if run is None else run.trace})"


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

        with parallelize(pipeline, "adaptive") as handle:
            image = pipeline("a red circle").images[0]
        print(handle.trace)

    Every rank calls it, at most 30 minutes apart: under torchrun, or with a process group of your own; one process alone is a
    group of 1. The default random states of a group are made equal, so that noise sampled without a generator agrees. Adapters
    and attention processors are to be applied before.

    Args:
        pipeline: stock Diffusers pipeline.
        schedule: schedule object, or the name of a built-in one.
        group_size: ranks that generate one image together: 1, 2 or 4; by default 2, or 1 in a world of one rank. Consecutive
            ranks form a group.
        group: existing group, instead of ``group_size``, ``timeout_s`` and ``across_nodes``.
        timeout_s: seconds after which a rank gives up waiting for its peers; 120 by default.
        guidance_scale: guidance scale that the pipeline will be called with, only for pipelines that double their batch and do
            not report it, as PixArt's.
        across_nodes: whether groups may have ranks on several nodes, whose network then takes part in every step; by default not.

    Raises:
        UsageError: an unknown schedule or group size, ranks that do not split into groups, a group that spans nodes, an
            incompatible pipeline, or options that contradict an existing group.
    """
    chosen = make_schedule(schedule)
    _check_group_options(group_size, group, timeout_s, across_nodes)
    device = execution_device(pipeline, find_denoiser(pipeline))
    size = group.size if group is not None else default_group_size(device) if group_size is None else group_size
    denoiser, fitted = check_compatible(pipeline, chosen, size, guidance_scale)
    owns_group = group is None
    if group is None:
        if size > 1:
            ensure_process_group(device)
        group = join_group(size, TIMEOUT_S if timeout_s is None else timeout_s, bool(across_nodes))
    barrier(group)
    if owns_group:
        share_random_state(group, device)
    exchange = Exchange(group)
    placement = GroupPlacement(denoiser, exchange, fitted.kinds)
    if fitted is not chosen and placement.is_log_rank:
        _LOG.warning("%s, so schedule %s runs without half steps", why_uncut(denoiser, size), chosen.name)
    hook = DenoiserHook(pipeline, denoiser, fitted, placement, guidance_scale)
    hook.attach()
    return Handle(hook, exchange, owns_group)


def _check_group_options(group_size: int | None, group: Group | None, timeout_s: float | None, across_nodes: bool | None) -> None:
    if timeout_s is not None:
        require_positive("timeout_s", timeout_s)
    if group is None:
        return
    require(group_size in (None, group.size), "group_size", group_size, f"{group.size}, the size of the given group")
    for name, given in (("timeout_s", timeout_s), ("across_nodes", across_nodes)):
        require(given is None, name, given, "nothing together with an existing group")
