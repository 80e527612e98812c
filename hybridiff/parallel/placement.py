"""How a group executes a kind of step. A placement knows no policy; any schedule runs on any group size."""

from typing import Any, Protocol

import torch
from torch import Tensor

from hybridiff.errors import UsageError
from hybridiff.models.cuts import Cut, choose_cut
from hybridiff.parallel.boundary import Boundary
from hybridiff.parallel.call import DenoiserCall
from hybridiff.parallel.exchange import Exchange
from hybridiff.parallel.layout import SEGMENTED, Part, deliveries, parts, results, segments, share
from hybridiff.parallel.rows import assemble
from hybridiff.parallel.segments import Stage
from hybridiff.schedule import StepKind


class Placement(Protocol):
    """Executes the steps of one denoiser."""

    @property
    def speaks(self) -> bool:
        """Whether this process tells the log what all ranks would tell alike."""
        ...

    def begin(self) -> None:
        """Forgets all of the generation before."""
        ...

    def rejoin(self) -> None:
        """Brings the ranks together after a run that was left before its end.

        Raises:
            PeerLost: not all of them have left it, or not at the same place.
        """
        ...

    def remove(self) -> None:
        """Takes the hooks off the denoiser's atoms."""
        ...

    def unguided_step(self, call: DenoiserCall, first: bool) -> tuple[Tensor, Any]:
        """A batch that is not doubled because guidance is off: each rank computes its share of the images.

        Returns:
            The prediction (rows, channels, height, width), and an output of the denoiser to put it in.
        """
        ...

    def guided_step(self, kind: StepKind, call: DenoiserCall, step: int, first: bool, last: bool) -> tuple[Tensor, Any]:
        """A step of a doubled batch [unconditional, conditional] of B images.

        Args:
            kind: Of the step, any but a skip step.
            call: Of the denoiser.
            step: Its number, which tells versions of outputs apart.
            first: Of a generation; the ranks then also compare what they were asked, in the same exchange.
            last: No other half or pipelined step comes before the next full one.

        Returns:
            The doubled prediction (2 B, ...), of a half step the conditional one (B, ...); and an output to put it in.

        Raises:
            UsageError: the ranks were asked for different images, or the denoiser cannot be cut.
            PeerLost: a rank of the group did not answer.
        """
        ...


class GroupPlacement:
    """Runs the steps of one denoiser on the ranks of one group; every rank returns the same bytes.

    Args:
        denoiser: Hooked at its atoms in the first guided step, if the group is to run segments of it.
        exchange: Of the group.
        kinds: Of steps that the schedule may ask for.
    """

    def __init__(self, denoiser: torch.nn.Module, exchange: Exchange, kinds: frozenset[StepKind]) -> None:
        self.denoiser = denoiser
        self.exchange = exchange
        self._size = exchange.group.size
        self._rank = exchange.group.rank
        self._segmented = kinds & SEGMENTED if self._size > 1 else frozenset()
        self._stage = Stage(denoiser)
        self._cuts: dict[tuple[Any, int], Cut] = {}  # by shapes of a call's inputs and number of segments
        self._boundary: Boundary | None = None

    @property
    def speaks(self) -> bool:
        """As ``Placement`` says."""
        return self.exchange.group.leader and self.exchange.group.index == 0

    def begin(self) -> None:
        """Forgets all of the generation before."""
        self._boundary = None

    def rejoin(self) -> None:
        """As ``Placement`` says."""
        self.exchange.rejoin()

    def remove(self) -> None:
        """Takes the hooks off the atoms."""
        self._stage.remove()

    def unguided_step(self, call: DenoiserCall, first: bool) -> tuple[Tensor, Any]:
        """As ``Placement`` says."""
        every = tuple(Part(share(call.rows, self._size, rank)) for rank in range(self._size))
        return self._whole(every, call, tuple(range(call.rows)), first)

    def guided_step(self, kind: StepKind, call: DenoiserCall, step: int, first: bool, last: bool) -> tuple[Tensor, Any]:
        """As ``Placement`` says."""
        images = call.rows // 2
        every = parts(kind, self._size, images)
        wanted = tuple(range(images if kind is StepKind.HALF else 0, 2 * images))
        if every[self._rank].segment is not None:
            return self._segment(every, call, wanted, step, last)
        if not self._segmented:
            return self._whole(every, call, wanted, first)
        boundary = self._prepared(call, images)
        # Half steps read conditional rows alone.
        needed = [StepKind.PIPELINED in self._segmented or min(part.rows) >= images for part in every]
        mine = every[self._rank].rows if needed[self._rank] else ()
        with self._stage.scene({}, lambda path, output: boundary.computed(path, mine, output)):
            prediction = self._whole(every, call, wanted, first)
        for rank, part in enumerate(every):
            if needed[rank]:
                boundary.ledger.note(boundary.watched, rank, part.rows, step)
        return prediction

    def _whole(self, every: tuple[Part, ...], call: DenoiserCall, wanted: tuple[int, ...], first: bool) -> tuple[Tensor, Any]:
        """Some rows by the whole network on each rank, and one all-gather of the prediction."""
        prediction, output = call.run(every[self._rank].rows)
        if self._size == 1:
            return prediction, output
        gathered = self._compared(prediction, call) if first else self.exchange.all_gather(prediction)
        return assemble(wanted, [(part.rows, piece) for part, piece in zip(every, gathered, strict=True)]), output

    def _segment(
        self, every: tuple[Part, ...], call: DenoiserCall, wanted: tuple[int, ...], step: int, last: bool
    ) -> tuple[Tensor, Any]:
        """Some rows by one segment on each rank, fed with what the others computed last; then one packed exchange."""
        boundary, mine = self._boundary, every[self._rank]
        assert boundary is not None, "a schedule begins with a full step"
        cut = boundary.cuts[segments(every)]
        boundary.fetch(boundary.ledger.missing(every, cut))
        given = boundary.given(mine, cut)
        with self._stage.scene(given, lambda path, output: boundary.computed(path, mine.rows, output)):
            prediction, output = call.run(mine.rows)
        for rank, part in enumerate(every):
            owned = [path for path in boundary.watched if cut.owner(path) == part.segment]
            boundary.ledger.note(owned, rank, part.rows, step)
        predictors = results(every, cut)
        received = boundary.exchange(() if last else deliveries(every, cut), predictors, prediction)
        return assemble(wanted, [(every[r].rows, piece) for r, piece in zip(predictors, received, strict=True)]), output

    def _prepared(self, call: DenoiserCall, images: int) -> Boundary:
        """The generation's boundary. Before its first full step the cuts are chosen, if these shapes are new."""
        if self._boundary is None:
            counts = {segments(parts(kind, self._size, images)) for kind in self._segmented}
            for count in counts:
                if (call.signature, count) not in self._cuts:
                    self._cuts[call.signature, count] = choose_cut(self.denoiser, call.args, call.kwargs, count)
            cuts = {count: self._cuts[call.signature, count] for count in counts}
            self._stage.install(atom.path for cut in cuts.values() for atom in cut.atoms)
            self._boundary = Boundary(self.exchange, cuts)
        return self._boundary

    def _compared(self, prediction: Tensor, call: DenoiserCall) -> list[Tensor]:
        """The ranks' predictions, gathered together with what they were asked, which must be alike."""
        payload = torch.cat([t.contiguous().view(torch.uint8).flatten() for t in (prediction, call.fingerprint())])
        pieces = self.exchange.all_gather(payload)
        if any(not torch.equal(piece[-8:], pieces[0][-8:]) for piece in pieces):
            raise UsageError(
                "the ranks of a group were asked for different images; every rank must call the pipeline with the same prompts, "
                "sizes, guidance and seeds, such as generator=torch.Generator().manual_seed(0), on as many CPU threads"
            )
        return [piece[:-8].view(prediction.dtype).view(prediction.shape) for piece in pieces]
