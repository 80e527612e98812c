"""Failures of one rank of a pair, and of its peer, wherever they happen."""

import pkgutil
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from hybridiff.parallel import Exchange, Group, Handle, PeerLost
from hybridiff.parallel.guard import BatchFailed, FailureGuard, OutOfMemory
from hybridiff.parallel.reference import emulate
from jobs.benchmark.host_syncs import HostSyncs
from tests.dist.tiny import latents_of, tiny_sd3
from tests.parallel.scripted import Scripted
from tests.parallel.threads import ThreadExchange, on_threads

FULL_MEMORY = "tried to allocate 40 GiB"


class Pair(Exchange):
    """This rank's exchange with a peer that says that it failed when it is asked for the so-many-th time, from 1."""

    def __init__(
        self, fails_at: int | None = None, lost_at: int | None = None, theirs: bytes = b"\0RuntimeError: the peer's"
    ) -> None:
        super().__init__(Group(size=2, rank=0, timeout_s=7.0))
        self.theirs = theirs
        self.fails_at, self.lost_at = fails_at, lost_at
        self.said: list[int] = []

    def all_reduce_max(self, number: int, timeout_s: float | None = None) -> int:
        assert timeout_s == 7.0
        self.said.append(number)
        if len(self.said) == self.lost_at:
            raise PeerLost("rank 1 of the group did not answer")
        return max(number, int(len(self.said) == self.fails_at))

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        theirs = self.theirs if len(self.said) == self.fails_at else b""
        return [tensor, torch.tensor(list(theirs.ljust(len(tensor), b"\0")), dtype=torch.uint8)]


def no_memory(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError(FULL_MEMORY)


def run_steps(peer: Pair, steps: int = 3, then: Callable[[], Any] = lambda: None, fails_at: int | None = None) -> tuple[int, int]:
    """The steps computed and the collectives made in a batch; the denoiser runs out of memory in step ``fails_at``, from 1."""
    abandoned: list[bool] = []
    handle: Any = SimpleNamespace(group=peer.group, exchange=Exchange(peer.group), abandon_run=lambda: abandoned.append(True))
    with patch("hybridiff.parallel.guard.Exchange", lambda _: peer), patch.object(dist, "all_gather", lambda *_, **__: None):
        guard, computed = FailureGuard(handle, torch.device("cpu")), 0
        handle.exchange.all_gather(torch.zeros(2))  # before any batch nothing is compared
        try:
            with guard.batch():
                for step in range(steps):
                    if step + 1 == fails_at:
                        no_memory()
                    computed += 1
                    handle.exchange.all_gather(torch.zeros(2))
                then()
        except BatchFailed as failure:
            assert abandoned == [True]
            raise type(failure)(f"{failure} after {computed} steps") from None
    return computed, handle.exchange.collectives - 1


def test_the_device_is_not_synchronised() -> None:
    peer = Pair()
    with HostSyncs() as syncs:
        assert run_steps(peer) == (3, 3)
    assert syncs.total == 0 and peer.said == [0, 0, 0, 0], "before each exchange, and at the end"


def test_a_failure_between_two_exchanges_is_reported_in_place_of_the_second() -> None:
    peer = Pair()
    with pytest.raises(OutOfMemory, match=f"OutOfMemoryError: {FULL_MEMORY} after 1 steps"):
        run_steps(peer, fails_at=2)
    assert peer.said == [0, 1]


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_rank_leaves_the_batch_before_the_exchange_that_its_peer_misses(step: int) -> None:
    peer = Pair(fails_at=step)
    with pytest.raises(BatchFailed, match=rf"^RuntimeError: the peer's after {step} steps$") as failed:
        run_steps(peer)
    assert not isinstance(failed.value, OutOfMemory) and peer.said == [0] * step


@pytest.mark.parametrize("mine", [None, 2])
def test_both_ranks_know_that_one_ran_out_of_memory(mine: int | None) -> None:
    with pytest.raises(OutOfMemory, match="OutOfMemoryError: t"):
        run_steps(Pair(fails_at=2, theirs=b"\1OutOfMemoryError: theirs"), fails_at=mine)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        MemoryError("Unable to allocate 40 GiB for an array"),
    ],
)
def test_other_words_for_a_lack_of_memory(error: Exception) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(OutOfMemory, match=rf"^{type(error).__name__}: "):
        run_steps(Pair(), then=fail)


@pytest.mark.parametrize("argument", [ValueError("wrapped"), 3, None])
def test_an_error_whose_argument_is_no_text_is_no_lack_of_memory(argument: Any) -> None:
    def fail() -> None:
        raise RuntimeError(argument)

    with pytest.raises(BatchFailed, match=rf"^RuntimeError: {argument} after 3 steps$") as failed:
        run_steps(Pair(), then=fail)
    assert not isinstance(failed.value, OutOfMemory)


def test_a_failure_of_the_peer_after_its_last_step_is_reported_at_the_end() -> None:
    with pytest.raises(BatchFailed, match="RuntimeError: the peer's"):
        run_steps(Pair(fails_at=4))


def test_a_lost_peer_is_not_a_failed_batch() -> None:
    with pytest.raises(PeerLost):
        run_steps(Pair(lost_at=2))


PLACES = {  # in which rank 1 runs out of memory, and in which of its calls there
    "inputs of the first exchange": ("hybridiff.parallel.call.DenoiserCall.fingerprint", 1),
    "rows of all ranks after an exchange": ("hybridiff.parallel.placement.assemble_rows", 2),
    "prompts": ("diffusers.StableDiffusion3Pipeline.encode_prompt", 1),
    "before the exchange before a half step": ("hybridiff.parallel.activations.ActivationCache.fetch", 1),
    "inputs of a segment": ("hybridiff.parallel.activations.ActivationCache.cached_inputs", 1),
    "after the last exchange": ("hybridiff.parallel.placement.assemble_rows", 5),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_rank_that_alone_runs_out_of_memory_takes_its_peer_along(place: str) -> None:
    """The batch fails on both ranks for lack of memory, and the next one, of one image, is the reference's."""
    path, number = PLACES[place]
    stock, local = pkgutil.resolve_name(path), threading.local()

    def failing(*args: Any, **kwargs: Any) -> Any:
        local.calls += 1
        return no_memory() if local.rank == 1 and local.calls == number else stock(*args, **kwargs)

    def run(pipeline: Any, handle: Handle) -> tuple[str, Tensor]:
        local.rank, local.calls = handle.group.rank, 0
        guard, failed = FailureGuard(handle, torch.device("cpu")), ""
        guard._own = ThreadExchange.beside(handle.exchange)
        try:
            with guard.batch():
                latents_of(pipeline, 2, 6)
        except OutOfMemory as failure:
            failed = str(failure)
        with guard.batch():
            latents = latents_of(pipeline, 1, 6)
        return failed, latents

    pipeline, script = tiny_sd3(), Scripted("FFHHSF")
    with emulate(pipeline, script, 2):
        expected = latents_of(pipeline, 1, 6)
    with patch(path, failing):
        ranks = on_threads(tiny_sd3, script, 2, run)
    for failed, latents in ranks:
        assert failed == f"OutOfMemoryError: {FULL_MEMORY}" and torch.equal(latents, expected)
