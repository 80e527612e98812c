"""Groups whose ranks are threads of one process: every collective of the engine, without process groups."""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from hybridiff.parallel import Exchange, Group, Handle, parallelize
from hybridiff.schedule import Schedule

WAIT_S = 60.0


class Board:
    """What the ranks of a group have posted in the present collective."""

    def __init__(self, size: int) -> None:
        self.posted: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=WAIT_S)

    def swap(self, rank: int, value: Any) -> list[Any]:
        """Every rank's value, in rank order."""
        self.posted[rank] = value
        self.barrier.wait()
        values = list(self.posted)
        self.barrier.wait()
        return values


class ThreadExchange(Exchange):
    """The collectives over a board; counted as those over a process group."""

    board: Board

    @classmethod
    def beside(cls, exchange: Exchange) -> "ThreadExchange":
        """Another exchange of the same ranks."""
        assert isinstance(exchange, cls)
        other = cls(exchange.group)
        other.board = exchange.board
        return other

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        with self._collective():
            self.bytes_sent += tensor.numel() * tensor.element_size() * (self.group.size - 1)
            return [other.clone() for other in self.board.swap(self.group.rank, tensor.contiguous())]

    def all_reduce_max(self, number: int, timeout_s: float | None = None) -> int:
        return int(max(self.board.swap(self.group.rank, number)))

    def send_receive(
        self,
        outgoing: Mapping[int, Sequence[Tensor]],
        incoming: Mapping[int, Sequence[tuple[int, torch.dtype]]],
        device: torch.device,
    ) -> dict[int, list[Tensor]]:
        with self._collective():
            self.bytes_sent += sum(t.numel() * t.element_size() for tensors in outgoing.values() for t in tensors)
            sent = self.board.swap(self.group.rank, {peer: [t.clone() for t in tensors] for peer, tensors in outgoing.items()})
        received = {peer: list(sent[peer].get(self.group.rank, ())) for peer in incoming}
        for peer, expected in incoming.items():
            assert [(t.numel(), t.dtype) for t in received[peer]] == list(expected), "the ranks disagree on what is sent"
        return received


def on_threads(
    make: Callable[[], Any], schedule: str | Schedule, size: int, run: Callable[[Any, Handle], Any], **options: Any
) -> list[Any]:
    """What each rank of a group returns.

    Args:
        make: makes the pipeline of a rank; called one at a time.
        schedule: schedule of the group.
        size: ranks.
        run: runs a rank's pipeline with its handle.
        options: further arguments of ``parallelize``.
    """
    board, pipelines = Board(size), [make() for _ in range(size)]
    handles = []
    for number, pipeline in enumerate(pipelines):
        exchange = ThreadExchange(Group(size, number))
        exchange.board = board
        with patch("hybridiff.parallel.api.Exchange", lambda _group, mine=exchange: mine):
            handles.append(parallelize(pipeline, schedule, group=exchange.group, **options))

    def rank(number: int) -> Any:
        try:
            return run(pipelines[number], handles[number])
        except BaseException:
            board.barrier.abort()  # the other ranks would wait
            raise

    with ThreadPoolExecutor(size) as pool:
        returned = [pool.submit(rank, number) for number in range(size)]
    for handle in handles:
        handle.remove()
    errors = [error for future in returned if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return [future.result() for future in returned]
