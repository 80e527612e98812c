"""A row of the table, ready to draw."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hybridiff.errors import UsageError
from hybridiff.models.cuts import choose_cut
from hybridiff.models.guidance import reports_guidance
from hybridiff.models.inputs import find_denoiser
from hybridiff.parallel import Group, parallelize
from hybridiff.parallel.reference import emulate
from hybridiff.schedule import StepKind
from jobs.benchmark.config import RowConfig, SettingConfig
from jobs.benchmark.ideal import LargestSegment
from jobs.benchmark.subject import Subject, build_schedule, twin


class Contender:
    """A pipeline of its own, on the subject's weights, with a row's schedule and placement installed.

    Args:
        subject: The network.
        setting: Steps and guidance.
        row: Schedule, placement, scheduler.
        group: The ranks that draw together; None to let this process play all of them.
    """

    def __init__(self, subject: Subject, setting: SettingConfig, row: RowConfig, group: Group | None) -> None:
        self.subject = subject
        self.setting = setting
        self.row = row
        self.pipeline = twin(subject.pipeline, row)
        schedule = build_schedule(row)
        scale = None if reports_guidance(type(self.pipeline)) else setting.guidance_scale
        alone = Group() if row.group_size == 1 else None
        if group is None and alone is None:
            self.handle: Any = emulate(self.pipeline, schedule, row.group_size, scale)
        else:
            self.handle = parallelize(self.pipeline, schedule, row.group_size, group=group or alone, guidance_scale=scale)

    def draw(self, images: Sequence[int], output_type: str) -> Tensor:
        """Draws images: latents as they are, or pictures (batch, 3, height, width) in [0, 1] (``pt``)."""
        arguments = self.subject.arguments(images, self.setting, self.row.steps(self.setting))
        drawn: Tensor = self.pipeline(**arguments, output_type=output_type)[0]
        return drawn

    @property
    def counts(self) -> Counter[StepKind]:
        """How many steps of each kind the last drawing took."""
        return Counter(self.handle.trace.kinds)

    def remove(self) -> None:
        """Takes schedule and placement off again, on every rank of the group."""
        self.handle.remove()


def capture_call(subject: Subject, setting: SettingConfig, images: Sequence[int]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the pipeline passes to its denoiser in the first step, both branches in one batch."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    watch = find_denoiser(subject.pipeline).register_forward_pre_hook(
        lambda _module, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    try:
        subject.pipeline(**subject.arguments(images, setting, 1), output_type="latent")
    finally:
        watch.remove()
    return calls[0]


@torch.no_grad()
def largest_segment(subject: Subject, setting: SettingConfig) -> LargestSegment | None:
    """The largest segment's share of the network's FLOPs at the size in use; None if the network can't be cut."""
    args, kwargs = capture_call(subject, setting, [0])
    denoiser = find_denoiser(subject.pipeline)
    try:
        return LargestSegment(*(choose_cut(denoiser, args, kwargs, segments).largest_share for segments in (2, 4)))
    except UsageError:
        return None
