"""What counts as waiting for the device."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from jobs.benchmark.host_syncs import HostSyncs

SYNCHRONIZING: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x[0].item(),
    "bool": lambda x: bool(x[0] > 0),
    "float": lambda x: float(x.sum()),
    "list": lambda x: x.tolist(),
    "array": lambda x: x.numpy(),
    "equal": lambda x: torch.equal(x, x),
    "index search": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
}


@pytest.mark.parametrize("name", SYNCHRONIZING)
def test_each_read_counts_once(name: str) -> None:
    x = torch.arange(4.0)
    with HostSyncs() as syncs:
        SYNCHRONIZING[name](x)
    assert syncs.total == 1


def test_arithmetic_does_not_synchronize() -> None:
    x = torch.arange(4.0)
    with HostSyncs() as syncs:
        _ = (x @ x + x.to(torch.bfloat16).sum()).clamp(min=0)
        x.copy_(2 * x)
    assert syncs.total == 0


def test_nothing_is_counted_outside() -> None:
    syncs = HostSyncs()
    with syncs:
        torch.ones(1).item()
    torch.ones(1).item()
    assert syncs.total == 1


class _Scheduler:
    def step(self, given: Tensor) -> float:
        return given.item() + given.item()


def test_the_schedulers_syncs_are_counted_apart_and_its_step_is_restored() -> None:
    scheduler = _Scheduler()
    with HostSyncs() as syncs, syncs.apart(scheduler):
        torch.ones(1).item()
        assert scheduler.step(torch.ones(1)) == 2
        assert scheduler.step(torch.ones(1)) == 2
        torch.ones(1).tolist()
    assert (syncs.total, syncs.counts["scheduler"]) == (6, 4)
    assert type(scheduler) is _Scheduler
