"""How a group executes a kind of step. A placement knows no policy; any schedule runs on any group size."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from hybridiff.errors import UsageError
from hybridiff.models.cuts import Cut, choose_cut
from hybridiff.parallel.activations import ActivationCache, BlockHooks
from hybridiff.parallel.call import AnyCall, BranchCalls, DenoiserCall, assemble_rows
from hybridiff.parallel.exchange import Exchange
from hybridiff.parallel.rank_work import (
    SEGMENTED,
    RankWork,
    has_lanes,
    predicting_ranks,
    segment_count,
    single_work,
    split_rows,
    transfers_after,
    work_of_ranks,
)
from hybridiff.schedule import StepKind


class Placement(Protocol):
    """Executes the steps of one denoiser."""

    @property
    def is_log_rank(self) -> bool:
        """Whether this process logs what would be equal on all ranks."""
        ...

    @property
    def group_size(self) -> int:
        """Ranks of the group."""
        ...

    @property
    def has_activations(self) -> bool:
        """Whether half and pipelined steps can be run: a full step has left what their segments read, or there are none."""
        ...

    def reset(self) -> None:
        """Drops the state of the last generation."""
        ...

    def resynchronize(self) -> None:
        """Waits for the other ranks after an interrupted run.

        Raises:
            PeerLost: not all ranks left it, or not after the same collective.
        """
        ...

    def remove_hooks(self) -> None:
        """Removes the hooks on the denoiser's blocks."""
        ...

    def segments(self, images: int) -> bool:
        """Whether half and pipelined steps of so many images without guidance run segments of the network."""
        ...

    def branches_step(self, calls: BranchCalls) -> tuple[Tensor, Any]:
        """All branches of a step, however many, each by one of the ranks: the predictions in their order, and an output."""
        ...

    def unguided_step(self, call: DenoiserCall, first: bool, shared: bool = True) -> tuple[Tensor, Any]:
        """A call that is computed as it is: each rank computes some of its rows.

        Args:
            call: denoiser call.
            first: whether this is the first step of the generation; the ranks then also compare their inputs.
            shared: whether the ranks share the rows; else each computes all of them.

        Returns:
            The prediction (rows, channels, height, width), and a denoiser output to put it in.
        """
        ...

    def single_step(self, kind: StepKind, call: DenoiserCall, step: int, last: bool) -> tuple[Tensor, Any]:
        """A step without guidance: the ranks share the images, or the network where there are fewer images than ranks.

        Args:
            kind: kind of the step, any but a skip step; a full one unless ``segments`` of the call's rows.
            call: denoiser call.
            step: number of the step, which is the version of its activations.
            last: whether no other half or pipelined step comes before the next full one.

        Returns:
            As ``unguided_step``.
        """
        ...

    def guided_step(self, kind: StepKind, call: AnyCall, step: int, first: bool, last: bool) -> tuple[Tensor, Any]:
        """A step of a doubled batch [unconditional, conditional] of B images.

        Args:
            kind: kind of the step, any but a skip step; pipelined only where the call ``can_be_pipelined``.
            call: denoiser call.
            step: number of the step, which is the version of its activations.
            first: whether this is the first step of the generation; the ranks then also compare their inputs.
            last: whether no other half or pipelined step comes before the next full one.

        Returns:
            The doubled prediction (2 B, ...), in a half step the conditional one (B, ...); and a denoiser output to put it in.

        Raises:
            UsageError: the ranks' inputs differ, or the denoiser cannot be cut.
            PeerLost: a rank of the group did not answer.
        """
        ...


class GroupPlacement:
    """Runs the steps of one denoiser on the ranks of one group; every rank returns the same bits.

    Args:
        denoiser: network; its blocks are hooked in the first guided step if the schedule needs segments.
        exchange: collectives of the group.
        kinds: kinds of steps that the schedule may plan.
    """

    def __init__(self, denoiser: torch.nn.Module, exchange: Exchange, kinds: frozenset[StepKind]) -> None:
        self.denoiser = denoiser
        self.exchange = exchange
        self._size = exchange.group.size
        self._rank = exchange.group.rank
        self._segmented = kinds & SEGMENTED if self._size > 1 else frozenset()
        self._blocks = BlockHooks(denoiser)
        self._cuts: dict[tuple[Any, int], Cut] = {}  # by shapes of a call's inputs and number of segments
        self._layouts: dict[Any, dict[str, Any]] = {}  # of the blocks' conditional outputs, by shapes of a call's inputs
        self._cache: ActivationCache | None = None

    @property
    def is_log_rank(self) -> bool:
        """Whether this is the first rank of the first group."""
        return self.exchange.group.leader and self.exchange.group.index == 0

    @property
    def group_size(self) -> int:
        """Ranks of the group."""
        return self._size

    @property
    def has_activations(self) -> bool:
        """A rank alone runs half steps with the whole network."""
        return self._size == 1 or self._cache is not None

    def reset(self) -> None:
        """Drops the activations of the last generation."""
        self._cache = None

    def resynchronize(self) -> None:
        """Waits for the other ranks of the group after an interrupted run."""
        self.exchange.resynchronize()

    def remove_hooks(self) -> None:
        """Removes the hooks on the blocks."""
        self._blocks.remove()

    def segments(self, images: int) -> bool:
        """Where the schedule has such steps, and there are fewer images than ranks."""
        return bool(self._segmented) and has_lanes(self._size, images)

    def branches_step(self, calls: BranchCalls) -> tuple[Tensor, Any]:
        """Each rank computes equally many branches, the last one repeated to fill up, with one all-gather of the predictions."""
        images, count = calls.branches[0].rows, len(calls.branches)
        shares = [split_rows(count, self._size, rank) for rank in range(self._size)]
        ran = [calls.branches[branch].run() for branch in shares[self._rank]]
        gathered = self.exchange.all_gather(torch.cat([prediction for prediction, _ in ran]))
        rows = [[branch * images + image for branch in share for image in range(images)] for share in shares]
        return assemble_rows(range(count * images), list(zip(rows, gathered, strict=True))), ran[-1][1]

    def unguided_step(self, call: DenoiserCall, first: bool, shared: bool = True) -> tuple[Tensor, Any]:
        """Splits the batch into consecutive rows for each rank, with one all-gather of the predictions."""
        rows = tuple(range(call.rows))
        work = tuple(RankWork(split_rows(call.rows, self._size, rank) if shared else rows) for rank in range(self._size))
        return self._whole(work, call, rows, first)

    def single_step(self, kind: StepKind, call: DenoiserCall, step: int, last: bool) -> tuple[Tensor, Any]:
        """Runs this rank's part of the step, with one exchange of the group."""
        work, rows = single_work(kind, self._size, call.rows), tuple(range(call.rows))
        if work[self._rank].segment is not None:
            return self._segment(work, call, rows, step, last)
        if not self.segments(call.rows):
            return self._whole(work, call, rows, False)
        cache = self._prepare(call, {self._size // call.rows})
        return self._recorded(cache, work, call, rows, step, False, [True] * self._size)

    def guided_step(self, kind: StepKind, call: AnyCall, step: int, first: bool, last: bool) -> tuple[Tensor, Any]:
        """Runs this rank's part of the step, with one exchange of the group."""
        images = call.rows // 2
        work = work_of_ranks(kind, self._size, images)
        wanted = tuple(range(images if kind is StepKind.HALF else 0, 2 * images))
        if work[self._rank].segment is not None:
            return self._segment(work, call, wanted, step, last)
        segmented = self._segmented - (set() if call.can_be_pipelined else {StepKind.PIPELINED})
        if not segmented:
            return self._whole(work, call, wanted, first)
        cache = self._prepare(call, {segment_count(work_of_ranks(each, self._size, images)) for each in segmented})
        if not cache.layouts and (isinstance(call, BranchCalls) or call.padded):
            self._record_layouts(cache, call)
        # Half steps read conditional rows only
        needed = [StepKind.PIPELINED in segmented or min(rank.rows) >= images for rank in work]
        return self._recorded(cache, work, call, wanted, step, first, needed)

    def _recorded(
        self,
        cache: ActivationCache,
        work: tuple[RankWork, ...],
        call: AnyCall,
        wanted: tuple[int, ...],
        step: int,
        first: bool,
        needed: list[bool],
    ) -> tuple[Tensor, Any]:
        """As ``_whole``; the activations of the ranks that are needed by later segments are recorded."""
        recorded = work[self._rank].rows if needed[self._rank] else ()
        prediction = self._whole(work, call, wanted, first, lambda path, output: cache.record_output(path, recorded, output))
        for number, rank in enumerate(work):
            if needed[number]:
                cache.versions.record_computed(cache.crossing, number, rank.rows, step)
        return prediction

    def _whole(
        self,
        work: tuple[RankWork, ...],
        call: AnyCall,
        wanted: tuple[int, ...],
        first: bool,
        record_output: Callable[[str, Any], None] | None = None,
    ) -> tuple[Tensor, Any]:
        """Some rows through the whole network on each rank, and one all-gather of the predictions."""
        part = call.part(work[self._rank].rows)
        with self._blocks.execution({}, record_output):
            prediction, output = part.run()
        if self._size == 1:
            return prediction, output
        gathered = self._gather_checked(prediction, call) if first else self.exchange.all_gather(prediction)
        return assemble_rows(wanted, [(rank.rows, piece) for rank, piece in zip(work, gathered, strict=True)]), output

    def _segment(
        self, work: tuple[RankWork, ...], call: AnyCall, wanted: tuple[int, ...], step: int, last: bool
    ) -> tuple[Tensor, Any]:
        """One segment of the network on each rank, with activations of earlier steps, and one exchange after it."""
        mine, cache = work[self._rank], self._cache
        assert cache is not None, "a schedule begins with a full step"
        cut = cache.cuts[segment_count(work)]
        cache.fetch(cache.versions.transfers_before(work, cut))
        part, cached = call.part(mine.rows), cache.cached_inputs(mine, cut)
        with self._blocks.execution(cached, lambda path, output: cache.record_output(path, mine.rows, output)):
            prediction, output = part.run()
        for number, rank in enumerate(work):
            owned = [path for path in cache.crossing if cut.owner(path) == rank.segment]
            cache.versions.record_computed(owned, number, rank.rows, step)
        predictors = predicting_ranks(work, cut)
        received = cache.transfer(() if last else transfers_after(work, cut), predictors, prediction)
        return assemble_rows(wanted, [(work[r].rows, piece) for r, piece in zip(predictors, received, strict=True)]), output

    def _prepare(self, call: AnyCall, counts: set[int]) -> ActivationCache:
        """The generation's cache; before its first full step the cuts for the call's shapes are chosen, unless they are known.

        A cut depends on the network's configuration and the shapes of one row alone, so that it is the same on all ranks, in all
        steps, and after a restart. Counting takes up to a second for each size of images and length of prompts.

        Args:
            call: denoiser call.
            counts: numbers of segments that later steps may run.
        """
        if self._cache is None:
            row = call.last_row
            for count in counts:
                if (row.signature, count) not in self._cuts:
                    self._cuts[row.signature, count] = choose_cut(self.denoiser, row.args, row.kwargs, count)
            cuts = {count: self._cuts[row.signature, count] for count in counts}
            self._blocks.install(block.path for cut in cuts.values() for block in cut.blocks)
            self._cache = ActivationCache(self.exchange, cuts)
        return self._cache

    def _record_layouts(self, cache: ActivationCache, call: AnyCall) -> None:
        """Runs conditional rows for the layouts of their outputs, as those of the other branch may differ.

        One row, once for each shape. Where prompts are padded to the longest of a call: all rows of a half step, in each run.
        """
        images = call.rows // 2
        rows = work_of_ranks(StepKind.HALF, self._size, images)[self._rank].rows if call.padded else (images,)
        signature = call.last_row.signature
        if call.padded or signature not in self._layouts:
            part = call.part(rows)
            with self._blocks.execution({}, lambda path, output: cache.record_output(path, (), output)):
                part.run()
            self._layouts[signature] = dict(cache.layouts)
        cache.layouts.update(self._layouts[signature])

    def _gather_checked(self, prediction: Tensor, call: AnyCall) -> list[Tensor]:
        """All ranks' predictions, gathered together with fingerprints of their inputs, which must be equal."""
        payload = torch.cat([t.contiguous().view(torch.uint8).flatten() for t in (prediction, call.fingerprint())])
        pieces = self.exchange.all_gather(payload)
        if any(not torch.equal(piece[-8:], pieces[0][-8:]) for piece in pieces):
            raise UsageError(
                "the inputs differ between ranks of a group; allowed: every rank calls the pipeline with the same prompts, "
                "sizes, guidance and seeds, such as generator=torch.Generator().manual_seed(0), on as many CPU threads"
            )
        return [piece[:-8].view(prediction.dtype).view(prediction.shape) for piece in pieces]
