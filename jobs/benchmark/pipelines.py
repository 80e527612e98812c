"""A copy of the pipeline for each row of the table, with the row's scheduler, schedule and placement installed."""

import copy
import inspect
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from hybridiff.errors import UsageError, require
from hybridiff.models.cuts import choose_cut
from hybridiff.models.guidance import reports_guidance
from hybridiff.models.inputs import denoiser_name, find_denoiser
from hybridiff.models.schedulers import scheduler_class, set_timesteps
from hybridiff.parallel import Group, parallelize
from hybridiff.parallel.reference import emulate
from hybridiff.schedule import SamplerReader, Schedule, StepKind, make_schedule
from jobs.benchmark.config import RowConfig, SettingConfig
from jobs.benchmark.costs import LargestSegment
from jobs.benchmark.networks import Network

FLOW_SCHEDULERS = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler")


class RowPipeline:
    """A pipeline on the network's weights, with a row's schedule and placement installed.

    Args:
        network: network under test.
        setting: steps and guidance scale.
        row: schedule, placement, scheduler.
        group: ranks that generate together; None emulates all of them in this process.
    """

    def __init__(self, network: Network, setting: SettingConfig, row: RowConfig, group: Group | None) -> None:
        self.network = network
        self.setting = setting
        self.row = row
        self.pipeline = copy_pipeline(network.pipeline, row)
        schedule = build_schedule(row)
        scale = None if reports_guidance(type(self.pipeline)) else setting.guidance_scale
        alone = Group() if row.group_size == 1 else None
        if group is None and alone is None:
            self.handle: Any = emulate(self.pipeline, schedule, row.group_size, scale)
        else:
            self.handle = parallelize(self.pipeline, schedule, row.group_size, group=group or alone, guidance_scale=scale)

    def generate(self, images: Sequence[int], output_type: str) -> Tensor:
        """Generates images: latents (``latent``), or images (batch, 3, height, width) in [0, 1] (``pt``)."""
        arguments = self.network.arguments(images, self.setting, self.row.steps(self.setting))
        generated: Tensor = self.pipeline(**arguments, output_type=output_type)[0]
        return generated

    @property
    def step_counts(self) -> Counter[StepKind]:
        """Number of steps of each kind in the last call of ``generate``."""
        return Counter(self.handle.trace.kinds)

    def remove(self) -> None:
        """Removes schedule and placement, on every rank of the group."""
        self.handle.remove()


def copy_pipeline(pipeline: Any, row: RowConfig) -> Any:
    """A pipeline with modules of its own that share all weights, and a scheduler of its own, the row's if it names one.

    Raises:
        UsageError: the scheduler does not fit the pipeline, or does not accept its options.
    """
    denoiser = find_denoiser(pipeline)
    shared = {id(tensor): tensor for tensor in chain(denoiser.parameters(), denoiser.buffers())}
    other = copy.copy(pipeline)
    setattr(other, denoiser_name(pipeline), copy.deepcopy(denoiser, shared))
    other.scheduler = _scheduler(pipeline, row)
    return other


def _scheduler(pipeline: Any, row: RowConfig) -> Any:
    kind = type(pipeline.scheduler) if row.scheduler is None else _scheduler_class(pipeline, row.scheduler, row.scheduler_options)
    known = sorted(name for name in inspect.signature(kind.__init__).parameters if name != "self")
    options = f"nothing; the options of {kind.__name__} are {', '.join(known)}"
    for option, given in row.scheduler_options.items():  # Diffusers ignores unknown ones with no more than a warning
        require(option in known, f"rows.scheduler_options.{option}", given, options)
    try:
        return kind.from_config(pipeline.scheduler.config, **row.scheduler_options)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UsageError(f"rows.scheduler_options are {row.scheduler_options!r}: {error}") from error


def _scheduler_class(pipeline: Any, name: str, options: dict[str, Any]) -> Any:
    """A scheduler class that is compatible with the pipeline's own, or is configured for flow matching as that is."""
    own = type(pipeline.scheduler).__name__
    names = sorted(kind.__name__ for kind in pipeline.scheduler.compatibles) or [own]
    flow = own.startswith("FlowMatch")
    if name not in names and not (flow and name in FLOW_SCHEDULERS and options.get("use_flow_sigmas")):
        others = f", or {' or '.join(FLOW_SCHEDULERS)} with use_flow_sigmas" if flow else ""
        raise UsageError(f"rows.scheduler is {name!r}; allowed: {', '.join(names)}{others}")
    return scheduler_class(name)


def build_schedule(row: RowConfig) -> Schedule:
    """A row's schedule.

    Raises:
        UsageError: the schedule does not accept an option or a value.
    """
    try:
        return make_schedule(row.schedule, **row.options)
    except TypeError as error:
        raise UsageError(f"rows.options of {row.schedule} are {row.options}: {error}") from error


def check_rows(network: Network, setting: SettingConfig, rows: Sequence[RowConfig]) -> None:
    """Refuses rows that cannot be run at a setting, before any is.

    Raises:
        UsageError: as ``copy_pipeline`` and ``build_schedule``; or a schedule does not fit its row's steps.
    """
    denoiser = type(find_denoiser(network.pipeline)).__name__
    for row in rows:
        scheduler = copy_pipeline(network.pipeline, row).scheduler
        schedule = build_schedule(row)
        if row.schedule != "full":
            set_timesteps(scheduler, row.steps(setting))
            schedule.check(SamplerReader().read(scheduler, denoiser, setting.guidance_scale))


def capture_call(network: Network, setting: SettingConfig, images: Sequence[int]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that the pipeline passes to its denoiser in the first step, both branches in one batch."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    hook = find_denoiser(network.pipeline).register_forward_pre_hook(
        lambda _module, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    try:
        network.pipeline(**network.arguments(images, setting, 1), output_type="latent")
    finally:
        hook.remove()
    return calls[0]


@torch.no_grad()
def largest_segment(network: Network, setting: SettingConfig) -> LargestSegment | None:
    """The largest segment's share of the network's FLOPs at the image size in use; None if the network can't be cut."""
    args, kwargs = capture_call(network, setting, [0])
    denoiser = find_denoiser(network.pipeline)
    try:
        return LargestSegment(*(choose_cut(denoiser, args, kwargs, segments).largest_share for segments in (2, 4)))
    except UsageError:
        return None
