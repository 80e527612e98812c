"""Hooks on blocks: cached outputs, recorded outputs, installation and removal."""

from typing import Any

import pytest
import torch
from diffusers.hooks import HookRegistry

from hybridiff.parallel.activations import BLOCK_HOOK_NAME, BlockHooks


def network() -> torch.nn.Sequential:
    layers = [torch.nn.Linear(1, 1, bias=False) for _ in range(3)]
    for factor, layer in zip((2.0, 3.0, 5.0), layers, strict=True):
        torch.nn.init.constant_(layer.weight, factor)
    return torch.nn.Sequential(*layers)


def hooked(module: torch.nn.Module) -> bool:
    return HookRegistry.check_if_exists_or_initialize(module).get_hook(BLOCK_HOOK_NAME) is not None


def test_blocks_with_cached_outputs_are_not_run_and_others_are_recorded() -> None:
    net, seen = network(), dict[str, Any]()
    hooks = BlockHooks(net)
    hooks.install(["0", "1", "2"])
    one = torch.ones(1, 1)
    with hooks.execution({"1": torch.full((1, 1), 7.0)}, seen.__setitem__):
        assert net(one).item() == 35
    assert {path: output.item() for path, output in seen.items()} == {"0": 2.0, "2": 35.0}
    assert net(one).item() == 30  # outside of the context the blocks run as usual
    hooks.remove()
    assert not any(map(hooked, net)) and net(one).item() == 30


def test_a_replaced_block_is_hooked_again() -> None:
    net = network()
    hooks = BlockHooks(net)
    hooks.install(["0", "1"])
    old, net[1] = net[1], torch.nn.Identity()
    hooks.install(["0", "1"])
    assert not hooked(old) and hooked(net[1])
    with hooks.execution({"1": torch.zeros(1, 1)}, None):
        assert net(torch.ones(1, 1)).item() == 0
    hooks.remove()
    assert not any(map(hooked, net))


@pytest.mark.slow
def test_of_compiled_blocks_nothing_but_the_blocks_is_compiled() -> None:
    compiled: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        compiled.append(graph.code)
        return graph.forward

    class Block(torch.nn.Module):
        def forward(self, latents: torch.Tensor) -> torch.Tensor:
            return torch.cos(latents)

    denoiser = torch.nn.Sequential(*(Block() for _ in range(3)))
    for block in denoiser:
        block.compile(backend=backend)
    hooks, recorded = BlockHooks(denoiser), dict[str, torch.Tensor]()
    hooks.install("012")
    latents = torch.ones(1, 2)
    with hooks.execution({"1": latents}, lambda path, output: recorded.update({path: torch.sin(output)})):
        found = denoiser(latents)
    hooks.remove()
    assert torch.equal(recorded["2"], torch.sin(found)) and list(recorded) == ["0", "2"]
    assert compiled and all("cos" in code and "sin(" not in code for code in compiled)
    torch._dynamo.reset()
