"""How a group executes a kind of step. Placements know no policy; any schedule runs on any of them."""

from typing import Any, Protocol

import torch
from torch import Tensor

from hybridiff.config import UsageError
from hybridiff.parallel.call import DenoiserCall
from hybridiff.parallel.exchange import Exchange


class Placement(Protocol):
    """Runs steps on the ranks of one group; every rank returns the same bytes."""

    def full_step(self, call: DenoiserCall, first: bool) -> tuple[Tensor, Any]:
        """Both branches of a doubled batch: the doubled prediction [e_u, e_c], and an output to put it in.

        ``first``: of a generation; the ranks then also compare what they were asked, in the same exchange.
        """
        ...

    def unguided_step(self, call: DenoiserCall, first: bool) -> tuple[Tensor, Any]:
        """A batch that is not doubled because guidance is off."""
        ...


class Solo:
    """A group of one: the stock pipeline's own call."""

    def full_step(self, call: DenoiserCall, first: bool) -> tuple[Tensor, Any]:
        """Both branches in one batch."""
        return call.run()

    unguided_step = full_step


class Pair:
    """A group of two: rank 0 computes e_u and rank 1 e_c, each by the whole network (method: condition-based partitioning)."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange

    def full_step(self, call: DenoiserCall, first: bool) -> tuple[Tensor, Any]:
        """One branch per rank and one all-gather of the prediction."""
        images = call.rows // 2
        start = self.exchange.group.rank * images
        branch, output = call.run(slice(start, start + images))
        return torch.cat(self._gather(branch, call, first)), output

    def unguided_step(self, call: DenoiserCall, first: bool) -> tuple[Tensor, Any]:
        """Half of the images per rank and one all-gather of the prediction."""
        part, output = call.run(self.exchange.share(call.rows, call.model_input.device))
        return torch.cat(self._gather(part, call, first))[: call.rows], output

    def _gather(self, prediction: Tensor, call: DenoiserCall, first: bool) -> list[Tensor]:
        if not first:
            return self.exchange.all_gather(prediction)
        payload = torch.cat([t.contiguous().view(torch.uint8).flatten() for t in (prediction, call.fingerprint())])
        parts = self.exchange.all_gather(payload)
        predictions = [part[:-8].view(prediction.dtype).view(prediction.shape) for part in parts]
        if any(not torch.equal(part[-8:], parts[0][-8:]) for part in parts):
            raise UsageError(
                "the ranks of a group were asked for different images; every rank must call the pipeline with the same prompts, "
                "sizes and seeds, such as generator=torch.Generator().manual_seed(0)"
            )
        return predictions


def make_placement(exchange: Exchange) -> Placement:
    """The placement for the exchange's group size."""
    placements: dict[int, Placement] = {1: Solo(), 2: Pair(exchange)}
    return placements[exchange.group.size]
