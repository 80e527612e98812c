"""What one rank holds of the outputs that cross cuts, during one generation."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hybridiff.models.cuts import Cut
from hybridiff.parallel.exchange import Exchange
from hybridiff.parallel.layout import Ledger, Part, Transfer
from hybridiff.parallel.rows import layout_leaves, layouts, leaves, pick, rebuilt


@dataclass(frozen=True)
class Kept:
    """One row of an output: where it is in the tensors (rows, ...) that were computed or received."""

    tensors: list[Tensor]
    position: int


class Boundary:
    """The newest rows of each watched output that this rank has computed or received, and who else has which.

    Args:
        exchange: Of the group.
        cuts: In use, by number of segments.

    Attributes:
        watched: Paths of the outputs that cross any of the cuts.
        ledger: Who holds which version.
    """

    def __init__(self, exchange: Exchange, cuts: Mapping[int, Cut]) -> None:
        self._exchange = exchange
        self.cuts = cuts
        self.watched = tuple(dict.fromkeys(path for cut in cuts.values() for path, _ in cut.crossing))
        self._layouts: dict[str, Any] = {}  # of every atom's output, by path
        self._kept: dict[tuple[str, int], Kept] = {}  # by path and row
        self._placeholders: dict[Any, Tensor] = {}
        self.ledger = Ledger(exchange.group.size)

    def computed(self, path: str, rows: Sequence[int], output: Any) -> None:
        """Remembers the layout of an atom's output, and, if it crosses a cut, some rows of it by reference.

        Args:
            rows: That the output has; none, if nobody will read them.
        """
        if path not in self._layouts:
            self._layouts[path] = layouts(output)
        if rows and path in self.watched:
            layout = layout_leaves(self._layouts[path])
            self._keep(path, rows, [leaf.dense(tensor) for leaf, tensor in zip(layout, leaves(output), strict=True)])

    def _keep(self, path: str, rows: Sequence[int], tensors: list[Tensor]) -> None:
        for row in dict.fromkeys(rows):
            self._kept[path, row] = Kept(tensors, rows.index(row))

    def given(self, part: Part, cut: Cut) -> dict[str, Any]:
        """Outputs of all atoms that a part does not run: what it reads as last known, and placeholders for the rest."""
        assert part.segment is not None
        read = {path for path, segment in cut.crossing if segment == part.segment}
        others = [atom.path for atom in cut.atoms if cut.owner(atom.path) != part.segment]
        return {path: self._fed(path, part.rows) if path in read else self._placeholder(path, len(part.rows)) for path in others}

    def _fed(self, path: str, rows: Sequence[int]) -> Any:
        """What a reader is fed for an output: the newest that it holds of each row."""
        return rebuilt(self._layouts[path], self._newest(path, rows))

    def _newest(self, path: str, rows: Sequence[int]) -> list[Tensor]:
        newest = [self._kept[path, row] for row in rows]
        tensors = newest[0].tensors
        if len(tensors[0]) == len(rows) and all(k.tensors is tensors and k.position == i for i, k in enumerate(newest)):
            return tensors
        layout = layout_leaves(self._layouts[path])
        return [leaf.join([pick(k.tensors[i], [k.position]) for k in newest]) for i, leaf in enumerate(layout)]

    def _placeholder(self, path: str, rows: int) -> Any:
        layout = self._layouts[path]
        for leaf in layout_leaves(layout):
            if (leaf, rows) not in self._placeholders:
                self._placeholders[leaf, rows] = leaf.zeros(rows)
        return rebuilt(layout, [self._placeholders[leaf, rows] for leaf in layout_leaves(layout)])

    def fetch(self, transfers: Sequence[Transfer]) -> None:
        """Sends and receives some rows of outputs in one exchange of the whole group; nothing happens if there are none."""
        if transfers:
            device = layout_leaves(self._layouts[transfers[0].path])[0].device
            self.exchange(transfers, (), torch.empty(0, device=device))

    def exchange(self, transfers: Sequence[Transfer], predictors: Sequence[int], prediction: Tensor) -> list[Tensor]:
        """Sends and receives some rows of outputs, and predictions along with them, in one exchange of the whole group.

        Args:
            transfers: Of the whole group, alike on every rank.
            predictors: Ranks whose prediction goes to all others.
            prediction: This rank's, (rows, channels, height, width); all are of its shape.

        Returns:
            The predictors' predictions.
        """
        group, mine = self._exchange.group, prediction.contiguous()
        others = [rank for rank in range(group.size) if rank != group.rank]
        outgoing: dict[int, list[Tensor]] = defaultdict(list)
        incoming: dict[int, list[tuple[int, torch.dtype]]] = defaultdict(list)
        for transfer in transfers:
            layout = layout_leaves(self._layouts[transfer.path])
            if transfer.source == group.rank:
                held = self._newest(transfer.path, transfer.rows)
                outgoing[transfer.target] += [leaf.flat(tensor) for leaf, tensor in zip(layout, held, strict=True)]
            elif transfer.target == group.rank:
                incoming[transfer.source] += [(leaf.numel(len(transfer.rows)), leaf.dtype) for leaf in layout]
        for rank in others:
            if group.rank in predictors:
                outgoing[rank].append(mine.view(-1))
            if rank in predictors:
                incoming[rank].append((mine.numel(), mine.dtype))
        received = {peer: iter(flats) for peer, flats in self._exchange.swap(outgoing, incoming, mine.device).items()}
        self._take_in(transfers, received)
        return [mine if rank == group.rank else next(received[rank]).view(mine.shape) for rank in predictors]

    def _take_in(self, transfers: Sequence[Transfer], received: Mapping[int, Iterator[Tensor]]) -> None:
        for transfer in transfers:
            self.ledger.deliver(transfer)
            if transfer.target == self._exchange.group.rank:
                layout = layout_leaves(self._layouts[transfer.path])
                tensors = [leaf.shaped(next(received[transfer.source])) for leaf in layout]
                self._keep(transfer.path, transfer.rows, tensors)
