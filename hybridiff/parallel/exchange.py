"""The collectives of a group, counted, with a clear error where a peer is lost."""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from hybridiff.parallel.mesh import Group, all_gather_int, all_reduce_max
from hybridiff.parallel.rank_work import split_rows


class PeerLost(RuntimeError):
    """Another rank of the group has ended, raised an exception, or not answered in time."""


@dataclass
class Exchange:
    """Runs and counts the collectives of one group.

    Args:
        group: this rank's group.
        collectives: collectives started so far.
        bytes_sent: bytes sent so far by this rank to all its peers.
        before: called before each collective, when all memory that it needs is allocated; may raise, on all ranks alike.
    """

    group: Group
    collectives: int = 0
    bytes_sent: int = 0
    before: Callable[[], None] | None = None

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all ranks of the group, in rank order; shape and dtype are equal on all ranks.

        Raises:
            PeerLost: a rank of the group did not answer.
        """
        if self.group.size == 1:
            return [tensor]
        tensor = tensor.contiguous()
        parts = [torch.empty_like(tensor) for _ in range(self.group.size)]
        with self._collective():
            dist.all_gather(parts, tensor, group=self.group.process_group)
        self.bytes_sent += tensor.numel() * tensor.element_size() * (self.group.size - 1)
        return parts

    def send_receive(
        self,
        outgoing: Mapping[int, Sequence[Tensor]],
        incoming: Mapping[int, Sequence[tuple[int, torch.dtype]]],
        device: torch.device,
    ) -> dict[int, list[Tensor]]:
        """Sends and receives tensors between any ranks of the group in one exchange, packed by dtype; all ranks call it.

        Args:
            outgoing: flat tensors by receiving rank.
            incoming: number of elements and dtype of each flat tensor, by sending rank.
            device: device of the returned tensors.

        Returns:
            Flat tensors by sending rank.

        Raises:
            PeerLost: a rank of the group did not answer.
        """
        group = self.group.process_group
        # Gloo sends and receives in main memory only
        wire = torch.device("cpu") if dist.get_backend(group) == "gloo" else device
        sends = [(peer, packed.to(wire)) for peer, tensors in outgoing.items() for packed in _packed(tensors)]
        buffers = {peer: _buffers(expected, wire) for peer, expected in incoming.items()}
        operations = [dist.P2POp(dist.isend, packed, group=group, group_peer=peer) for peer, packed in sends]
        operations += [
            dist.P2POp(dist.irecv, buffer, group=group, group_peer=peer)
            for peer, received in buffers.items()
            for buffer in received.values()
        ]
        with self._collective():
            for work in dist.batch_isend_irecv(operations) if operations else ():
                work.wait()
        self.bytes_sent += sum(packed.numel() * packed.element_size() for _, packed in sends)
        return {peer: _unpacked(expected, buffers[peer], device) for peer, expected in incoming.items()}

    def gather_rows(self, tensor: Tensor, rows: int) -> Tensor:
        """A batch (rows, ...) on every rank, from the ``own_rows`` that each rank holds."""
        return torch.cat(self.all_gather(tensor))[:rows]

    def own_rows(self, rows: int, device: torch.device) -> Tensor:
        """The row numbers of a batch that this rank computes; see ``split_rows``."""
        return torch.tensor(split_rows(rows, self.group.size, self.group.rank), device=device)

    def all_reduce_max(self, number: int, timeout_s: float | None = None) -> int:
        """The maximum of a number over the ranks, on every rank; uses the control group, not the device.

        Args:
            number: this rank's number.
            timeout_s: seconds to wait for the other ranks; 30 minutes by default, as between runs.

        Raises:
            PeerLost: a rank of the group has ended, or did not call it in time.
        """
        with self._peer_errors():
            return all_reduce_max(self.group, number, timeout_s)

    def resynchronize(self) -> None:
        """Waits for the other ranks after an interrupted run, and checks that all of them left it after the same collective.

        Otherwise collectives of the next run would pair with those of the last one, with other sizes, which aborts processes.

        Raises:
            PeerLost: the others did not call it in time, or left the run elsewhere.
        """
        start = time.monotonic()
        try:
            started = all_gather_int(self.group, self.collectives)
        except RuntimeError as error:
            waited_s = time.monotonic() - start
            raise PeerLost(
                f"this rank left a run before its end, and {self._peers} of the group did not, within {waited_s:.1f} s: "
                f"{_cause(error)}"
            ) from error
        if len(set(started)) > 1:
            raise PeerLost(
                f"the ranks of the group left a run after different numbers of collectives, {started}; the group cannot run again"
            )

    @property
    def _peers(self) -> str:
        others = ", ".join(str(rank) for rank in range(self.group.size) if rank != self.group.rank)
        return f"rank {others}" if self.group.size == 2 else f"one of the ranks {others}"

    @contextmanager
    def _collective(self) -> Iterator[None]:
        """The context of one counted collective; whatever may fail on one rank alone comes before or after it."""
        if self.before is not None:
            self.before()
        self.collectives += 1
        with self._peer_errors():
            yield

    @contextmanager
    def _peer_errors(self) -> Iterator[None]:
        """Raises ``PeerLost`` for errors of collectives."""
        start = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            waited_s = time.monotonic() - start
            raise PeerLost(f"{self._peers} of the group did not answer, after {waited_s:.1f} s: {_cause(error)}") from error


def _cause(error: RuntimeError) -> str:
    """The first sentence of an error of torch.distributed, without its source location."""
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
    tensors, offsets = [], dict.fromkeys(buffers, 0)
    on_device = {dtype: buffer.to(device) for dtype, buffer in buffers.items()}
    for elements, dtype in expected:
        tensors.append(on_device[dtype][offsets[dtype] : offsets[dtype] + elements])
        offsets[dtype] += elements
    return tensors
