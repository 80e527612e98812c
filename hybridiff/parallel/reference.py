"""The specification in code: one process plays all ranks of a group, one after the other. Plain and slow; nothing is sent."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from hybridiff.models.cuts import Cut, choose_cut
from hybridiff.parallel.api import Handle, check_fit
from hybridiff.parallel.call import DenoiserCall
from hybridiff.parallel.exchange import Exchange
from hybridiff.parallel.hook import DenoiserHook
from hybridiff.parallel.layout import SEGMENTED, Part, parts, segments, share
from hybridiff.parallel.mesh import Group
from hybridiff.parallel.rows import layout_leaves, layouts, leaves, rebuilt
from hybridiff.parallel.segments import Stage
from hybridiff.schedule import Schedule, StepKind, make_schedule


def emulate(pipeline: Any, schedule: str | Schedule = "full", group_size: int = 2, guidance_scale: float | None = None) -> Handle:
    """Runs a pipeline on this process alone as a group of ranks would: the latents are the same, bit for bit.

    Args:
        pipeline: As for ``parallelize``.
        schedule: A name or a schedule object.
        group_size: Of the group that is emulated.
        guidance_scale: As for ``parallelize``.

    Raises:
        UsageError: as ``parallelize``.
    """
    chosen = make_schedule(schedule)
    denoiser = check_fit(pipeline, chosen, group_size, guidance_scale)
    hook = DenoiserHook(pipeline, chosen, OneProcess(denoiser, group_size, chosen.kinds), guidance_scale)
    hook.attach(denoiser)
    return Handle(hook, Exchange(Group()), owns_group=False)


class OneProcess:
    """A placement that computes all ranks' parts of a step, with every output of every atom at hand."""

    def __init__(self, denoiser: torch.nn.Module, group_size: int, kinds: frozenset[StepKind]) -> None:
        self.speaks = True
        self._denoiser = denoiser
        self._size = group_size
        self._segmented = kinds & SEGMENTED if group_size > 1 else frozenset()
        self._stage = Stage(denoiser)
        self._cuts: dict[tuple[Any, int], Cut] = {}
        self.begin()

    def begin(self) -> None:
        """Forgets all of the generation before."""
        self._last: dict[tuple[str, int], list[Tensor]] = {}  # (path, row) -> the output's tensors (1, ...) as last computed
        self._layouts: dict[str, Any] = {}

    def rejoin(self) -> None:
        """Nothing: one process is always together."""

    def remove(self) -> None:
        """Takes the hooks off the atoms."""
        self._stage.remove()

    def unguided_step(self, call: DenoiserCall, first: bool) -> tuple[Tensor, Any]:
        """As ``Placement.unguided_step``."""
        ran = [call.run(share(call.rows, self._size, rank)) for rank in range(self._size)]
        return torch.cat([prediction for prediction, _ in ran])[: call.rows], ran[0][1]

    def guided_step(self, kind: StepKind, call: DenoiserCall, step: int, first: bool, last: bool) -> tuple[Tensor, Any]:
        """As ``Placement.guided_step``: each rank's part in turn, all of them fed with what was computed before this step."""
        images = call.rows // 2
        every = parts(kind, self._size, images)
        cuts = {each: self._cut(call, segments(parts(each, self._size, images))) for each in self._segmented}
        cut = cuts.get(kind)
        computed: dict[tuple[str, int], list[Tensor]] = {}
        predicted: dict[int, Tensor] = {}
        for part in every:
            given = {} if cut is None else self._given(part, cut)
            with self._stage.scene(given, partial(self._note, computed, part.rows)):
                prediction, output = call.run(part.rows)
            if cut is None or part.segment == cut.prediction:
                for position, row in enumerate(part.rows):
                    predicted.setdefault(row, prediction[position : position + 1])
        self._last.update(computed)
        return torch.cat([predicted[row] for row in sorted(predicted)]).contiguous(), output

    def _cut(self, call: DenoiserCall, count: int) -> Cut:
        key = (call.signature, count)
        if key not in self._cuts:
            self._cuts[key] = choose_cut(self._denoiser, call.args, call.kwargs, count)
            self._stage.install(atom.path for atom in self._cuts[key].atoms)
        return self._cuts[key]

    def _given(self, part: Part, cut: Cut) -> dict[str, Any]:
        """The last outputs of all atoms that a part does not run. It reads those alone that cross the cut."""
        given = {}
        for path in [atom.path for atom in cut.atoms if cut.owner(atom.path) != part.segment]:
            known = [self._last[path, row] for row in part.rows]
            tensors = [leaf.join([each[i] for each in known]) for i, leaf in enumerate(layout_leaves(self._layouts[path]))]
            given[path] = rebuilt(self._layouts[path], tensors)
        return given

    def _note(self, computed: dict[tuple[str, int], list[Tensor]], rows: tuple[int, ...], path: str, output: Any) -> None:
        self._layouts.setdefault(path, layouts(output))
        for position, row in enumerate(rows):
            computed.setdefault((path, row), [tensor[position : position + 1] for tensor in leaves(output)])
