"""Atoms that are run, stood in for, and watched; their hooks come and go."""

from typing import Any

import torch
from diffusers.hooks import HookRegistry

from hybridiff.parallel.segments import SEGMENT_HOOK_NAME, Stage


def network() -> torch.nn.Sequential:
    layers = [torch.nn.Linear(1, 1, bias=False) for _ in range(3)]
    for factor, layer in zip((2.0, 3.0, 5.0), layers, strict=True):
        torch.nn.init.constant_(layer.weight, factor)
    return torch.nn.Sequential(*layers)


def hooked(module: torch.nn.Module) -> bool:
    return HookRegistry.check_if_exists_or_initialize(module).get_hook(SEGMENT_HOOK_NAME) is not None


def test_what_is_given_is_not_run_and_what_is_run_is_noted() -> None:
    net, seen = network(), dict[str, Any]()
    stage = Stage(net)
    stage.install(["0", "1", "2"])
    one = torch.ones(1, 1)
    with stage.scene({"1": torch.full((1, 1), 7.0)}, seen.__setitem__):
        assert net(one).item() == 35
    assert {path: output.item() for path, output in seen.items()} == {"0": 2.0, "2": 35.0}
    assert net(one).item() == 30  # between calls the atoms are as ever
    stage.remove()
    assert not any(map(hooked, net)) and net(one).item() == 30


def test_an_atom_that_was_replaced_is_hooked_again() -> None:
    net = network()
    stage = Stage(net)
    stage.install(["0", "1"])
    old, net[1] = net[1], torch.nn.Identity()
    stage.install(["0", "1"])
    assert not hooked(old) and hooked(net[1])
    with stage.scene({"1": torch.zeros(1, 1)}, None):
        assert net(torch.ones(1, 1)).item() == 0
    stage.remove()
    assert not any(map(hooked, net))
