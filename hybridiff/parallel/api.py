"""``parallelize``: the library's front door."""

from typing import Any

import torch
from diffusers.hooks import HookRegistry

from hybridiff.config import GROUP_SIZES, UsageError, require_choice
from hybridiff.parallel.exchange import Exchange
from hybridiff.parallel.hook import HOOK_NAME, DenoiserHook
from hybridiff.parallel.mesh import Group, ensure_process_group, join_group, leave_group, share_random_state
from hybridiff.parallel.placement import make_placement
from hybridiff.schedule import Schedule, Trace, make_schedule


class Handle:
    """A pipeline that runs on a group of ranks, until ``remove`` is called.

    Attributes:
        group: This rank's group.
        exchange: Counts the group's collectives and bytes.
    """

    def __init__(self, denoiser: torch.nn.Module, hook: DenoiserHook, exchange: Exchange, owns_group: bool) -> None:
        self._denoiser = denoiser
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
        HookRegistry.check_if_exists_or_initialize(self._denoiser).remove_hook(HOOK_NAME, recurse=False)
        if self._owns_group:
            leave_group(self.group)
        self._owns_group = False


def parallelize(
    pipeline: Any,
    schedule: str | Schedule = "full",
    group_size: int = 2,
    *,
    group: Group | None = None,
    timeout_s: float = 1800.0,
) -> Handle:
    """Lets the ranks of a group run a stock Diffusers pipeline together: each rank calls it alike and gets the same images.

    Call it on every rank, under torchrun or with a process group of your own. The default random states of a group are made
    equal, so that noise drawn without a generator agrees as well.

    Args:
        pipeline: A Diffusers pipeline that doubles the batch for classifier-free guidance.
        schedule: A name or a schedule object.
        group_size: Ranks that make one image together: 1 or 2.
        group: An existing group, instead of ``group_size``.
        timeout_s: Seconds after which a rank gives up waiting for its peer.

    Raises:
        UsageError: an unknown schedule or group size, a world that does not split into groups, a pipeline that does not fit.
    """
    require_choice("group_size", group_size, GROUP_SIZES)
    chosen = make_schedule(schedule)
    denoiser = find_denoiser(pipeline)
    registry = HookRegistry.check_if_exists_or_initialize(denoiser)
    if registry.get_hook(HOOK_NAME) is not None:
        raise UsageError("this pipeline is parallelized already; call remove() on its handle first")
    owns_group = group is None
    if group is None:
        device = next(denoiser.parameters()).device
        if group_size > 1:
            ensure_process_group(device, timeout_s)
        group = join_group(group_size, timeout_s)
        share_random_state(group, device)
    exchange = Exchange(group)
    hook = DenoiserHook(pipeline, chosen, make_placement(exchange))
    registry.register_hook(hook, HOOK_NAME)
    return Handle(denoiser, hook, exchange, owns_group)


def find_denoiser(pipeline: Any) -> torch.nn.Module:
    """The network that a pipeline calls in each step.

    Raises:
        UsageError: there is none, or the pipeline does not say whether guidance is on.
    """
    name = type(pipeline).__name__
    found = [part for part in (getattr(pipeline, "unet", None), getattr(pipeline, "transformer", None)) if part is not None]
    if len(found) != 1 or not isinstance(found[0], torch.nn.Module):
        raise UsageError(f"{name} has no single denoiser; allowed: a Diffusers pipeline with either a unet or a transformer")
    if not hasattr(type(pipeline), "do_classifier_free_guidance"):
        raise UsageError(f"{name} does not tell whether guidance is on; allowed: a pipeline with do_classifier_free_guidance")
    return found[0]
