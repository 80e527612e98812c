"""The group's collectives, counted, and ended with a clear error where a peer is lost."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from hybridiff.parallel.layout import share
from hybridiff.parallel.mesh import Group, collect, largest


class PeerLost(RuntimeError):
    """Another rank of the group has ended, raised, or not answered in time."""


@dataclass
class Exchange:
    """Runs and counts the collectives of one group.

    Args:
        group: Whose ranks take part.
        collectives: Begun so far.
        bytes_sent: By this rank, to all its peers together.
    """

    group: Group
    collectives: int = 0
    bytes_sent: int = 0

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all ranks of the group, in rank order; all of one shape and dtype.

        Raises:
            PeerLost: a rank of the group did not answer.
        """
        if self.group.size == 1:
            return [tensor]
        tensor = tensor.contiguous()
        parts = [torch.empty_like(tensor) for _ in range(self.group.size)]
        self.collectives += 1
        with self._answered():
            dist.all_gather(parts, tensor, group=self.group.process_group)
        self.bytes_sent += tensor.numel() * tensor.element_size() * (self.group.size - 1)
        return parts

    def swap(
        self,
        outgoing: Mapping[int, Sequence[Tensor]],
        incoming: Mapping[int, Sequence[tuple[int, torch.dtype]]],
        device: torch.device,
    ) -> dict[int, list[Tensor]]:
        """One packed exchange, in which each rank sends each peer what that needs. Every rank of the group calls it.

        Args:
            outgoing: Flat tensors by the rank they go to.
            incoming: Number of elements and dtype of each of the flat tensors expected, by the rank they come from.
            device: Of the tensors returned.

        Raises:
            PeerLost: a rank of the group did not answer.
        """
        group = self.group.process_group
        # Gloo sends and receives in main memory alone.
        wire = torch.device("cpu") if dist.get_backend(group) == "gloo" else device
        sends = [(peer, packed.to(wire)) for peer, tensors in outgoing.items() for packed in _packed(tensors)]
        buffers = {peer: _buffers(expected, wire) for peer, expected in incoming.items()}
        operations = [dist.P2POp(dist.isend, packed, group=group, group_peer=peer) for peer, packed in sends]
        operations += [
            dist.P2POp(dist.irecv, buffer, group=group, group_peer=peer)
            for peer, received in buffers.items()
            for buffer in received.values()
        ]
        self.collectives += 1
        with self._answered():
            for work in dist.batch_isend_irecv(operations) if operations else ():
                work.wait()
        self.bytes_sent += sum(packed.numel() * packed.element_size() for _, packed in sends)
        return {peer: _unpacked(expected, buffers[peer], device) for peer, expected in incoming.items()}

    def gather_rows(self, tensor: Tensor, rows: int) -> Tensor:
        """Puts together a batch of which each rank holds ``share(rows)``: (rows, ...) on every rank."""
        return torch.cat(self.all_gather(tensor))[:rows]

    def share(self, rows: int, device: torch.device) -> Tensor:
        """The rows of a batch that this rank computes: consecutive, equally many on each rank, the last repeated to fill up."""
        return torch.tensor(share(rows, self.group.size, self.group.rank), device=device)

    def largest(self, number: int, timeout_s: float | None = None) -> int:
        """The largest of the ranks' numbers, on every rank; each calls it, and no device takes part.

        Args:
            number: This rank's.
            timeout_s: Seconds to wait for the others; 30 minutes by default, as between runs.

        Raises:
            PeerLost: a rank of the group has ended, or did not come in time.
        """
        with self._answered():
            return largest(self.group, number, timeout_s)

    def rejoin(self) -> None:
        """Meets the other ranks after a run that was left before its end, which all of them must have left at the same place.

        Otherwise the exchanges of the next run would meet those of the last, of other sizes, which ends processes.

        Raises:
            PeerLost: they did not come in time, or left at another place.
        """
        start = time.monotonic()
        try:
            begun = collect(self.group, self.collectives)
        except RuntimeError as error:
            waited_s = time.monotonic() - start
            raise PeerLost(
                f"this rank left a run before its end, and {self._peers} of the group did not follow, after {waited_s:.1f} s: "
                f"{_cause(error)}"
            ) from error
        if len(set(begun)) > 1:
            raise PeerLost(f"the ranks of the group left a run at different places, after {begun} exchanges; no more can be run")

    @property
    def _peers(self) -> str:
        others = ", ".join(str(rank) for rank in range(self.group.size) if rank != self.group.rank)
        return f"rank {others}" if self.group.size == 2 else f"one of the ranks {others}"

    @contextmanager
    def _answered(self) -> Iterator[None]:
        """Around a wait for other ranks."""
        start = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            waited_s = time.monotonic() - start
            raise PeerLost(f"{self._peers} of the group did not answer, after {waited_s:.1f} s: {_cause(error)}") from error


def _cause(error: RuntimeError) -> str:
    """The first sentence of an error of torch.distributed, without the place in its source."""
    lines = re.sub(r"\[\S+:\d+\] ?", "", str(error)).strip().splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0]


def _packed(tensors: Sequence[Tensor]) -> list[Tensor]:
    """One tensor per dtype, in the order in which dtypes first appear."""
    dtypes = dict.fromkeys(tensor.dtype for tensor in tensors)
    return [torch.cat([tensor for tensor in tensors if tensor.dtype == dtype]) for dtype in dtypes]


def _buffers(expected: Sequence[tuple[int, torch.dtype]], device: torch.device) -> dict[torch.dtype, Tensor]:
    dtypes = dict.fromkeys(dtype for _, dtype in expected)
    return {d: torch.empty(sum(n for n, dtype in expected if dtype == d), dtype=d, device=device) for d in dtypes}


def _unpacked(
    expected: Sequence[tuple[int, torch.dtype]], buffers: dict[torch.dtype, Tensor], device: torch.device
) -> list[Tensor]:
    tensors, taken = [], dict.fromkeys(buffers, 0)
    on_device = {dtype: buffer.to(device) for dtype, buffer in buffers.items()}
    for elements, dtype in expected:
        tensors.append(on_device[dtype][taken[dtype] : taken[dtype] + elements])
        taken[dtype] += elements
    return tensors
