"""How a group executes a kind of step. A placement knows no policy; any schedule runs on any group size."""

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
    predicting_ranks,
    segment_count,
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

    def unguided_step(self, call: DenoiserCall, first: bool) -> tuple[Tensor, Any]:
        """A step without guidance, whose batch is not doubled: each rank computes some of its rows.

        Args:
            call: denoiser call.
            first: whether this is the first step of the generation; the ranks then also compare their inputs.

        Returns:
            The prediction (rows, channels, height, width), and a denoiser output to put it in.
        """
        ...

    def guided_step(self, kind: StepKind, call: AnyCall, step: int, first: bool, last: bool) -> tuple[Tensor, Any]:
        """A step of a doubled batch [unconditional, conditional] of B images.

        Args:
            kind: kind of the step, any but a skip step; of ``BranchCalls`` neither a pipelined one.
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

    def reset(self) -> None:
        """Drops the activations of the last generation."""
        self._cache = None

    def resynchronize(self) -> None:
        """Waits for the other ranks of the group after an interrupted run."""
        self.exchange.resynchronize()

    def remove_hooks(self) -> None:
        """Removes the hooks on the blocks."""
        self._blocks.remove()

    def unguided_step(self, call: DenoiserCall, first: bool) -> tuple[Tensor, Any]:
        """Splits the batch into consecutive rows for each rank, with one all-gather of the predictions."""
        work = tuple(RankWork(split_rows(call.rows, self._size, rank)) for rank in range(self._size))
        return self._whole(work, call, tuple(range(call.rows)), first)

    def guided_step(self, kind: StepKind, call: AnyCall, step: int, first: bool, last: bool) -> tuple[Tensor, Any]:
        """Runs this rank's part of the step, with one exchange of the group."""
        images = call.rows // 2
        work = work_of_ranks(kind, self._size, images)
        wanted = tuple(range(images if kind is StepKind.HALF else 0, 2 * images))
        if work[self._rank].segment is not None:
            return self._segment(work, call, wanted, step, last)
        segmented = self._segmented - ({StepKind.PIPELINED} if isinstance(call, BranchCalls) else set())
        if not segmented:
            return self._whole(work, call, wanted, first)
        cache = self._prepare(call, images, segmented)
        # Half steps read conditional rows only
        needed = [StepKind.PIPELINED in segmented or min(rank.rows) >= images for rank in work]
        mine = work[self._rank].rows if needed[self._rank] else ()
        with self._blocks.execution({}, lambda path, output: cache.record_output(path, mine, output)):
            prediction = self._whole(work, call, wanted, first)
        for number, rank in enumerate(work):
            if needed[number]:
                cache.versions.record_computed(cache.crossing, number, rank.rows, step)
        return prediction

    def _whole(self, work: tuple[RankWork, ...], call: AnyCall, wanted: tuple[int, ...], first: bool) -> tuple[Tensor, Any]:
        """Some rows through the whole network on each rank, and one all-gather of the predictions."""
        prediction, output = call.run(work[self._rank].rows)
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
        cached = cache.cached_inputs(mine, cut)
        with self._blocks.execution(cached, lambda path, output: cache.record_output(path, mine.rows, output)):
            prediction, output = call.run(mine.rows)
        for number, rank in enumerate(work):
            owned = [path for path in cache.crossing if cut.owner(path) == rank.segment]
            cache.versions.record_computed(owned, number, rank.rows, step)
        predictors = predicting_ranks(work, cut)
        received = cache.transfer(() if last else transfers_after(work, cut), predictors, prediction)
        return assemble_rows(wanted, [(work[r].rows, piece) for r, piece in zip(predictors, received, strict=True)]), output

    def _prepare(self, call: AnyCall, images: int, segmented: frozenset[StepKind]) -> ActivationCache:
        """The generation's cache; before its first full step the cuts for the call's shapes are chosen, unless they are known."""
        if self._cache is None:
            counts = {segment_count(work_of_ranks(kind, self._size, images)) for kind in segmented}
            for count in counts:
                if (call.signature, count) not in self._cuts:
                    self._cuts[call.signature, count] = choose_cut(self.denoiser, call.args, call.kwargs, count)
            cuts = {count: self._cuts[call.signature, count] for count in counts}
            self._blocks.install(block.path for cut in cuts.values() for block in cut.blocks)
            self._cache = ActivationCache(self.exchange, cuts)
            if isinstance(call, BranchCalls):
                self._record_layouts(self._cache, call)
        return self._cache

    def _record_layouts(self, cache: ActivationCache, call: BranchCalls) -> None:
        """Runs one conditional row for the layouts of its outputs, once for each shape; those of the other branch may differ."""
        if call.signature not in self._layouts:
            with self._blocks.execution({}, lambda path, output: cache.record_output(path, (), output)):
                call.run((call.rows // 2,))
            self._layouts[call.signature] = dict(cache.layouts)
        cache.layouts.update(self._layouts[call.signature])

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
