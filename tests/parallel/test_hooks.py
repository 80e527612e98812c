"""The engine's hooks beside Diffusers' own: of offloading, and others that go while ours stay."""

from typing import Any

import pytest
import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn

from hybridiff.config import ModelConfig
from hybridiff.config.model import Offload
from hybridiff.models.execution import execution_device, place
from hybridiff.models.load import load_pipeline
from hybridiff.parallel import Group, parallelize
from hybridiff.parallel.hooks import ForwardHook, remove_hook
from hybridiff.parallel.reference import emulate
from hybridiff.runner.module import CorpusModule
from tests.dist.tiny import latents_of, tiny_sd3, tiny_xl
from tests.dist.tiny_families import BRANCHES
from tests.parallel.scripted import Scripted
from tests.runner.modules import module_alone

SCRIPT = Scripted("FFHHSFFHSF")
STEPS = 10


class Doubling(ForwardHook):
    def new_forward(self, module: nn.Module, number: Tensor) -> Any:
        return 2 * self.fn_ref.original_forward(number)


class Adding(ModelHook):
    def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
        return output + 1


def test_a_hook_stays_where_one_below_it_goes() -> None:
    module = nn.Identity()
    registry = HookRegistry.check_if_exists_or_initialize(module)
    for name, hook in {"below": Adding(), "own": Doubling(), "second": Doubling(), "above": Adding()}.items():
        registry.register_hook(hook, name)
    assert module(torch.tensor(3)) == 17
    registry.remove_hook("below")
    assert module(torch.tensor(3)) == 13 and module(torch.tensor(3)) == 13
    registry.remove_hook("own")
    assert module(torch.tensor(3)) == 7 and module(torch.tensor(3)) == 7
    registry.remove_hook("above")
    registry.remove_hook("second")
    assert module(torch.tensor(3)) == 3 and registry.hooks == {}


def test_what_has_gone_does_not_come_back_with_the_removal_of_the_hook_above_it() -> None:
    module = nn.Identity()
    registry = HookRegistry.check_if_exists_or_initialize(module)
    for name, hook in {"lowest": Adding(), "below": Adding(), "own": Doubling()}.items():
        registry.register_hook(hook, name)
    assert module(torch.tensor(3)) == 10
    registry.remove_hook("below")
    remove_hook(module, "own")
    remove_hook(module, "none")
    assert module(torch.tensor(3)) == 4
    remove_hook(module, "lowest")
    assert module(torch.tensor(3)) == 3


def offloaded(pipeline: Any, offload: str) -> None:
    if offload == "model":
        pipeline.enable_model_cpu_offload(device="cpu")
    if offload == "group":
        place(pipeline, ModelConfig("tiny", offload="group"), "cpu")


@pytest.mark.parametrize(
    ("make", "offload", "late"),
    [(tiny_xl, "model", False), (tiny_sd3, "model", True), (tiny_xl, "group", True), (tiny_sd3, "group", False)],
)
def test_steps_are_the_same_with_offloading_in_each_run(make: Any, offload: str, late: bool) -> None:
    pipeline = make()
    with emulate(pipeline, SCRIPT, 2):
        expected = latents_of(pipeline, 2, STEPS)
    stock = latents_of(pipeline, 2, STEPS)
    if not late:
        offloaded(pipeline, offload)
    with emulate(pipeline, SCRIPT, 2) as handle:
        if late:
            offloaded(pipeline, offload)
        for _ in range(2):  # the first run installs hooks on blocks; a pipeline renews its own after each
            assert torch.equal(latents_of(pipeline, 2, STEPS), expected)
            assert handle.trace.compact() == "F2 H2 S1 F2 H1 S1 F1"
    assert torch.equal(latents_of(pipeline, 2, STEPS), stock)


def test_calls_per_branch_with_offloading() -> None:
    case = BRANCHES["flux"]
    pipeline = case.make()
    with parallelize(pipeline, SCRIPT, 1):
        expected = case.generate(pipeline, 2, STEPS)
    place(pipeline, ModelConfig("tiny", offload="group"), "cpu")
    with parallelize(pipeline, SCRIPT, 1):
        for _ in range(2):
            assert torch.equal(case.generate(pipeline, 2, STEPS), expected)


def test_the_device_of_an_offloaded_pipeline_is_the_one_that_it_runs_on() -> None:
    pipeline = tiny_xl()
    assert execution_device(pipeline, pipeline.unet) == torch.device("cpu")
    pipeline.enable_model_cpu_offload(device="cpu")
    pipeline.unet._hf_hook.execution_device = torch.device("cuda:1")
    assert execution_device(pipeline, pipeline.unet) == torch.device("cuda:1")
    assert execution_device(object(), nn.Identity()) == torch.device("cpu"), "a network without parameters"


def test_the_hook_of_a_job_stays_inside_those_of_model_offloading() -> None:
    alone = module_alone("shapes-xl", steps=2, rows=1)
    alone.teardown("predict")
    module = CorpusModule(alone.config, alone.facts)
    module.pipeline = load_pipeline(alone.config.model, alone.facts)
    module.pipeline.enable_model_cpu_offload(device="cpu")
    unet = module.pipeline.unet
    module.parallelize(Group(size=2, rank=0))
    registry = HookRegistry.check_if_exists_or_initialize(unet)
    for _ in range(2):
        assert registry._hook_order == ["hybridiff"] and unet.forward.func.__qualname__.startswith("add_hook_to_module")
        module.pipeline.maybe_free_model_hooks()
    module.teardown("predict")
    assert registry.hooks == {}
    assert unet._old_forward == type(unet).forward.__get__(unet)


@pytest.mark.gpu
@pytest.mark.parametrize("offload", ["model", "group"])
def test_weights_wait_in_main_memory(offload: Offload) -> None:
    case = BRANCHES["flux"]
    stock, pipeline = case.make().to("cuda"), case.make()
    place(pipeline, ModelConfig("tiny", offload=offload), torch.device("cuda", 0))
    with parallelize(stock, SCRIPT, 1):
        expected = case.generate(stock, 2, STEPS)
    with parallelize(pipeline, SCRIPT, 1) as handle:
        for _ in range(3):
            torch.testing.assert_close(case.generate(pipeline, 2, STEPS), expected)
            assert handle.trace.compact() == "F2 H2 S1 F2 H1 S1 F1"
            assert "cpu" in {one.device.type for one in pipeline.transformer.parameters()}
