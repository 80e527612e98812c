"""What one rank of a pair does when it fails, or hears that its peer has."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hybridiff.parallel import Exchange, Group, PeerLost
from hybridiff.runner.agreement import Agreement
from hybridiff.runner.failed_rows import DrawFailed
from hybridiff.runner.guard import Guard
from jobs.benchmark.host_syncs import HostSyncs


class Pair(Exchange):
    """This rank's exchange with a peer that says that it failed when it is asked for the so-many-th time, from 1."""

    def __init__(self, fails_at: int | None = None, lost_at: int | None = None) -> None:
        super().__init__(Group(size=2, rank=0, timeout_s=7.0))
        self.fails_at, self.lost_at = fails_at, lost_at
        self.said: list[int] = []

    def largest(self, number: int, timeout_s: float | None = None) -> int:
        assert timeout_s == 7.0
        self.said.append(number)
        if len(self.said) == self.lost_at:
            raise PeerLost("rank 1 of the group did not answer")
        return max(number, int(len(self.said) == self.fails_at))

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        theirs = b"RuntimeError: the peer's" if len(self.said) == self.fails_at else b""
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


def draw(denoiser: Denoiser, exchange: Pair, steps: int = 3, then: Any = lambda: None) -> Tensor:
    guard = Guard(denoiser, Agreement(exchange, torch.device("cpu")), alone=False)
    latents = torch.zeros(2)
    with guard.drawing():
        for _ in range(steps):
            latents = denoiser(latents)
        then()
    guard.remove()
    return latents


def test_nothing_that_the_device_computes_is_waited_for() -> None:
    exchange = Pair()
    with HostSyncs() as syncs:
        latents = draw(Denoiser(), exchange)
    assert syncs.total == 0 and latents.tolist() == [3, 3]
    assert exchange.said == [0, 0, 0, 0, 0], "before the first call, after each, and at the end"


def test_a_rank_that_fails_in_the_denoiser_says_so_before_the_exchange_of_that_step() -> None:
    denoiser, exchange = Denoiser(fails_at=2), Pair()
    with pytest.raises(DrawFailed, match="OutOfMemoryError: tried to allocate 40 GiB"):
        draw(denoiser, exchange)
    assert exchange.said == [0, 0, 1] and denoiser.calls == 2


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_a_rank_leaves_the_step_in_which_it_hears_that_its_peer_has_failed(step: int) -> None:
    denoiser, exchange = Denoiser(), Pair(fails_at=step + 1)
    with pytest.raises(DrawFailed, match="RuntimeError: the peer's"):
        draw(denoiser, exchange)
    assert exchange.said == [0] * (step + 1) and denoiser.calls == step, "0: it never begins what its peer did not"


@pytest.mark.parametrize("steps", [0, 2])
def test_a_rank_that_fails_outside_the_denoiser_says_so_where_its_peer_asks(steps: int) -> None:
    def fail() -> None:
        raise ValueError("the sampler is broken")

    exchange = Pair()
    with pytest.raises(DrawFailed, match="ValueError: the sampler is broken"):
        draw(Denoiser(), exchange, steps, fail)
    assert exchange.said == [0] * (steps + bool(steps)) + [1]


def test_a_peer_that_fails_after_its_last_step_is_heard_of_at_the_end() -> None:
    with pytest.raises(DrawFailed, match="RuntimeError: the peer's"):
        draw(Denoiser(), Pair(fails_at=5))


def test_a_peer_that_is_lost_is_no_failed_row() -> None:
    with pytest.raises(PeerLost):
        draw(Denoiser(), Pair(lost_at=2))
