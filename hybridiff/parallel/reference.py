"""The specification in code: one process computes the work of all ranks of a group in turn. Plain and slow; nothing is sent."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from hybridiff.models.cuts import Cut, choose_cut
from hybridiff.parallel.activations import BlockHooks, build_output, output_layout, output_tensors, tensor_layouts
from hybridiff.parallel.api import Handle
from hybridiff.parallel.call import AnyCall, BranchCalls, DenoiserCall
from hybridiff.parallel.compatibility import check_compatible
from hybridiff.parallel.exchange import Exchange
from hybridiff.parallel.hook import DenoiserHook
from hybridiff.parallel.mesh import Group
from hybridiff.parallel.rank_work import SEGMENTED, RankWork, has_lanes, segment_count, single_work, split_rows, work_of_ranks
from hybridiff.schedule import Schedule, StepKind, make_schedule


def emulate(pipeline: Any, schedule: str | Schedule = "full", group_size: int = 2, guidance_scale: float | None = None) -> Handle:
    """Runs a pipeline on this process alone as a group of ranks would: the latents are the same, bit for bit.

    Args:
        pipeline: stock Diffusers pipeline.
        schedule: name or schedule object.
        group_size: ranks of the emulated group.
        guidance_scale: see ``parallelize``.

    Raises:
        UsageError: as ``parallelize``.
    """
    denoiser, fitted = check_compatible(pipeline, make_schedule(schedule), group_size, guidance_scale)
    hook = DenoiserHook(pipeline, denoiser, fitted, OneProcess(denoiser, group_size, fitted.kinds), guidance_scale)
    hook.attach()
    return Handle(hook, Exchange(Group()), owns_group=False)


class OneProcess:
    """A placement that computes the work of all ranks, and keeps every output of every block.

    Args:
        denoiser: network; its blocks are hooked when the first cut is chosen.
        group_size: ranks of the emulated group.
        kinds: kinds of steps that the schedule may plan.
    """

    def __init__(self, denoiser: torch.nn.Module, group_size: int, kinds: frozenset[StepKind]) -> None:
        self.is_log_rank = True
        self.group_size = group_size
        self._denoiser = denoiser
        self._segmented = kinds & SEGMENTED if group_size > 1 else frozenset()
        self._blocks = BlockHooks(denoiser)
        self._cuts: dict[tuple[Any, int], Cut] = {}
        self.reset()

    @property
    def has_activations(self) -> bool:
        """As ``GroupPlacement.has_activations``."""
        return self.group_size == 1 or bool(self._last)

    def reset(self) -> None:
        """Drops the activations of the last generation."""
        self._last: dict[tuple[str, int], list[Tensor]] = {}  # (path, row) -> the output's tensors (1, ...) as last computed
        self._layouts: dict[str, Any] = {}

    def resynchronize(self) -> None:
        """There are no other ranks to wait for."""

    def remove_hooks(self) -> None:
        """Removes the hooks on the blocks."""
        self._blocks.remove()

    def segments(self, images: int) -> bool:
        """As ``GroupPlacement.segments``."""
        return bool(self._segmented) and has_lanes(self.group_size, images)

    def branches_step(self, calls: BranchCalls) -> tuple[Tensor, Any]:
        """Each branch in turn."""
        ran = [call.run() for call in calls.branches]
        return torch.cat([prediction for prediction, _ in ran]), ran[-1][1]

    def unguided_step(self, call: DenoiserCall, first: bool, shared: bool = True) -> tuple[Tensor, Any]:
        """Each rank's rows in turn."""
        if not shared:
            return call.run()
        ran = [call.part(split_rows(call.rows, self.group_size, rank)).run() for rank in range(self.group_size)]
        return torch.cat([prediction for prediction, _ in ran])[: call.rows], ran[0][1]

    def single_step(self, kind: StepKind, call: DenoiserCall, step: int, last: bool) -> tuple[Tensor, Any]:
        """Each rank's work in turn, all of it with activations from before this step."""
        cut = self._cut(call, self.group_size // call.rows) if self.segments(call.rows) else None
        return self._in_turn(single_work(kind, self.group_size, call.rows), call, cut)

    def guided_step(self, kind: StepKind, call: AnyCall, step: int, first: bool, last: bool) -> tuple[Tensor, Any]:
        """Each rank's work in turn, all of it with activations from before this step."""
        images = call.rows // 2
        segmented = self._segmented - (set() if call.can_be_pipelined else {StepKind.PIPELINED})
        cuts = {each: self._cut(call, segment_count(work_of_ranks(each, self.group_size, images))) for each in segmented}
        return self._in_turn(work_of_ranks(kind, self.group_size, images), call, cuts.get(kind))

    def _in_turn(self, work: tuple[RankWork, ...], call: AnyCall, cut: Cut | None) -> tuple[Tensor, Any]:
        computed: dict[tuple[str, int], list[Tensor]] = {}
        predicted: dict[int, Tensor] = {}
        for rank in work:
            segment = None if rank.segment is None else cut
            cached = {} if segment is None else self._cached_inputs(rank, segment)
            part = call.part(rank.rows)
            with self._blocks.execution(cached, partial(self._record_output, computed, rank.rows)):
                prediction, output = part.run()
            if segment is None or rank.segment == segment.prediction:
                for position, row in enumerate(rank.rows):
                    predicted.setdefault(row, prediction[position : position + 1])
        self._last.update(computed)
        return torch.cat([predicted[row] for row in sorted(predicted)]).contiguous(), output

    def _cut(self, call: AnyCall, count: int) -> Cut:
        row = call.last_row
        key = (row.signature, count)
        if key not in self._cuts:
            self._cuts[key] = choose_cut(self._denoiser, row.args, row.kwargs, count)
            self._blocks.install(block.path for block in self._cuts[key].blocks)
        return self._cuts[key]

    def _cached_inputs(self, work: RankWork, cut: Cut) -> dict[str, Any]:
        """The last outputs of all blocks that a rank does not run; its segment reads only those that cross the cut."""
        cached = {}
        for path in [block.path for block in cut.blocks if cut.owner(block.path) != work.segment]:
            rows = [self._last[path, row] for row in work.rows]
            tensors = [layout.join([row[i] for row in rows]) for i, layout in enumerate(tensor_layouts(self._layouts[path]))]
            cached[path] = build_output(self._layouts[path], tensors)
        return cached

    def _record_output(
        self, computed: dict[tuple[str, int], list[Tensor]], rows: tuple[int, ...], path: str, output: Any
    ) -> None:
        self._layouts[path] = output_layout(output)  # in the end that of conditional rows, which come last
        for position, row in enumerate(rows):
            computed.setdefault((path, row), [tensor[position : position + 1] for tensor in output_tensors(output)])
