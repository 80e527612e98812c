"""Failures of one rank of a pair, and of its peer."""

from typing import Any

import pytest
import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn

from hybridiff.parallel import Exchange, Group, PeerLost
from hybridiff.parallel.guard import CALL_HOOK_NAME, ENTRY_HOOK_NAME, BatchFailed, FailureGuard, OutOfMemory
from jobs.benchmark.host_syncs import HostSyncs


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


class Denoiser(nn.Module):
    """Raises when it is called for the so-many-th time, from 1."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.fails_at = fails_at
        self.calls = 0

    def forward(self, latents: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.fails_at:
            raise torch.OutOfMemoryError("tried to allocate 40 GiB")
        return latents + 1


def run_steps(denoiser: Denoiser, exchange: Pair, steps: int = 3, then: Any = lambda: None) -> Tensor:
    guard = FailureGuard(denoiser, exchange, torch.device("cpu"))
    guard.install_entry()
    latents = torch.zeros(2)
    with guard.batch():
        for _ in range(steps):
            latents = denoiser(latents)
        then()
    guard.remove_entry()
    guard.remove()
    return latents


def test_the_device_is_not_synchronised() -> None:
    exchange = Pair()
    with HostSyncs() as syncs:
        latents = run_steps(Denoiser(), exchange)
    assert syncs.total == 0 and latents.tolist() == [3, 3]
    assert exchange.said == [0, 0, 0, 0, 0], "before the first call, after each, and at the end"


def test_a_failure_in_the_denoiser_is_reported_before_the_exchange_of_its_step() -> None:
    denoiser, exchange = Denoiser(fails_at=2), Pair()
    with pytest.raises(OutOfMemory, match="OutOfMemoryError: tried to allocate 40 GiB"):
        run_steps(denoiser, exchange)
    assert exchange.said == [0, 0, 1] and denoiser.calls == 2


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_a_rank_leaves_the_batch_at_the_step_in_which_its_peer_failed(step: int) -> None:
    denoiser, exchange = Denoiser(), Pair(fails_at=step + 1)
    with pytest.raises(BatchFailed, match=r"^RuntimeError: the peer's$") as failed:
        run_steps(denoiser, exchange)
    assert not isinstance(failed.value, OutOfMemory)
    assert exchange.said == [0] * (step + 1) and denoiser.calls == step, "0: it never begins what its peer did not"


@pytest.mark.parametrize("mine", [None, 1])
def test_both_ranks_know_that_one_ran_out_of_memory(mine: int | None) -> None:
    with pytest.raises(OutOfMemory, match="OutOfMemoryError: t"):
        run_steps(Denoiser(fails_at=mine), Pair(fails_at=2, theirs=b"\1OutOfMemoryError: theirs"))


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
        run_steps(Denoiser(), Pair(), then=fail)


@pytest.mark.parametrize("argument", [ValueError("wrapped"), 3, None])
def test_an_error_whose_argument_is_no_text_is_no_lack_of_memory(argument: Any) -> None:
    def fail() -> None:
        raise RuntimeError(argument)

    with pytest.raises(BatchFailed, match=rf"^RuntimeError: {argument}$") as failed:
        run_steps(Denoiser(), Pair(), then=fail)
    assert not isinstance(failed.value, OutOfMemory)


@pytest.mark.parametrize("steps", [0, 2])
def test_a_failure_outside_the_denoiser_is_reported_at_the_next_comparison(steps: int) -> None:
    def fail() -> None:
        raise ValueError("the sampler is broken")

    exchange = Pair()
    with pytest.raises(BatchFailed, match="ValueError: the sampler is broken"):
        run_steps(Denoiser(), exchange, steps, fail)
    assert exchange.said == [0] * (steps + bool(steps)) + [1]


def test_a_failure_of_the_peer_after_its_last_step_is_reported_at_the_end() -> None:
    with pytest.raises(BatchFailed, match="RuntimeError: the peer's"):
        run_steps(Denoiser(), Pair(fails_at=5))


def test_a_lost_peer_is_not_a_failed_batch() -> None:
    with pytest.raises(PeerLost):
        run_steps(Denoiser(), Pair(lost_at=2))


def test_the_guard_is_a_pair_of_hooks_around_the_parallel_one() -> None:
    denoiser = Denoiser()
    registry = HookRegistry.check_if_exists_or_initialize(denoiser)
    parallel = ModelHook()
    guard = FailureGuard(denoiser, Pair(), torch.device("cpu"))
    registry.register_hook(parallel, "hybridiff")
    guard.install_entry()
    assert registry._hook_order == [CALL_HOOK_NAME, "hybridiff", ENTRY_HOOK_NAME]
    assert CALL_HOOK_NAME == "hybridiff.guard.call" and ENTRY_HOOK_NAME == "hybridiff.guard.entry"
    with guard.batch():
        assert denoiser(torch.zeros(1)).item() == 1
        assert registry._hook_order == [CALL_HOOK_NAME, "hybridiff", ENTRY_HOOK_NAME]
    guard.remove_entry()
    registry.remove_hook("hybridiff")
    guard.remove()
    assert registry._hook_order == [] and registry.hooks == {} and denoiser(torch.zeros(1)).item() == 1


def test_one_rank_alone_has_no_guard_hooks() -> None:
    denoiser = Denoiser()
    guard = FailureGuard(denoiser, Exchange(Group()), torch.device("cpu"))
    guard.install_entry()
    assert HookRegistry.check_if_exists_or_initialize(denoiser).hooks == {}
    guard.remove_entry()
    guard.remove()
    assert denoiser(torch.zeros(1)).item() == 1
