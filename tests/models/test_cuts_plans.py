"""Plans are correct: a block reads the outputs that its plan lists, and no others."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from hybridiff.errors import UsageError
from hybridiff.models.cuts import Block, choose_cut, plan_of
from tests.models import small_denoisers as small

Output = Tensor | tuple[Tensor | None, ...]


def _plan(denoiser: nn.Module) -> tuple[Block, ...]:
    blocks = plan_of(denoiser)
    assert blocks is not None
    return blocks


@contextmanager
def _replaced(denoiser: nn.Module, forwards: dict[str, Callable[..., Output]]) -> Iterator[None]:
    """The denoiser with other forwards of some of its submodules."""
    modules = {path: denoiser.get_submodule(path) for path in forwards}
    for path, module in modules.items():
        module.forward = forwards[path]  # type: ignore[method-assign]
    yield
    for module in modules.values():
        del module.__dict__["forward"]


def _outputs(denoiser: nn.Module, call: small.Call) -> dict[str, Output]:
    """Each block's output in an undisturbed run, in order of execution."""
    outputs: dict[str, Output] = {}

    def recording(path: str, forward: Callable[..., Output]) -> Callable[..., Output]:
        def run(*args: Any, **kwargs: Any) -> Output:
            outputs[path] = forward(*args, **kwargs)
            return outputs[path]

        return run

    paths = [block.path for block in _plan(denoiser)]
    with _replaced(denoiser, {path: recording(path, denoiser.get_submodule(path).forward) for path in paths}):
        denoiser(**call)
    return outputs


def _parts(output: Any) -> list[Tensor]:
    return [t for t in (output if isinstance(output, tuple) else (output,)) if isinstance(t, Tensor)]


def _spoilt(output: Output) -> Output:
    if isinstance(output, Tensor):
        return torch.full_like(output, torch.nan)
    return tuple(None if part is None else torch.full_like(part, torch.nan) for part in output)


def _readers(denoiser: nn.Module, call: small.Call, outputs: dict[str, Output], spoilt: str) -> tuple[set[str], bool]:
    """Blocks that see NaN when only the output of ``spoilt`` is NaN, and whether the denoiser's own output has any."""
    readers: set[str] = set()

    def replaying(path: str) -> Callable[..., Output]:
        def run(*args: Any, **kwargs: Any) -> Output:
            if any(t.isnan().any() for t in _parts((*args, *kwargs.values()))):
                readers.add(path)
            return _spoilt(outputs[path]) if path == spoilt else outputs[path]

        return run

    with _replaced(denoiser, {path: replaying(path) for path in outputs}):
        predicted = denoiser(**call)[0]
    return readers, bool(predicted.isnan().any())


@pytest.mark.parametrize("name", small.NAMES)
@torch.no_grad()
def test_each_block_reads_the_outputs_of_its_plan_and_no_others(name: str) -> None:
    denoiser = small.build(name)
    call = small.call(denoiser)
    outputs, blocks = _outputs(denoiser, call), _plan(denoiser)
    assert list(outputs) == [block.path for block in blocks]
    for spoilt in outputs:
        readers, reaches_output = _readers(denoiser, call, outputs, spoilt)
        assert readers == {block.path for block in blocks if spoilt in block.inputs}, spoilt
        assert reaches_output == (spoilt == blocks[-1].path)


@pytest.mark.parametrize("name", small.NAMES)
@torch.no_grad()
def test_a_blocks_output_is_a_tensor_or_a_tuple_of_tensors_and_nones(name: str) -> None:
    denoiser = small.build(name)
    for output in _outputs(denoiser, small.call(denoiser)).values():
        assert all(isinstance(part, Tensor) or part is None for part in (output if isinstance(output, tuple) else (output,)))


def test_a_subclass_has_the_plan_of_its_class() -> None:
    class Ours(UNet2DConditionModel):
        pass

    ours = Ours(block_out_channels=(8, 8, 8, 8), norm_num_groups=4, attention_head_dim=4, cross_attention_dim=small.TEXT)
    plan = plan_of(ours)
    assert plan is not None and plan[0] == Block("conv_in", ())
    assert plan[1] == Block("down_blocks.0.resnets.0", ("conv_in",))
    assert plan[-1] == Block("conv_out", ("conv_norm_out",))
    assert Block("up_blocks.3.resnets.2", ("up_blocks.3.attentions.1", "conv_in")) in plan


def test_a_class_without_a_plan_is_refused_with_the_ways_out() -> None:
    denoiser = nn.Linear(2, 2)
    assert plan_of(denoiser) is None
    expected = "is a Linear.*UNet2DConditionModel, SD3Transformer2DModel, PixArtTransformer2DModel, SanaTransformer2DModel"
    with pytest.raises(UsageError, match=f"{expected}.*register_plan.*without half steps"):
        choose_cut(denoiser, (torch.ones(2, 2),), {}, 2)


def test_a_u_net_of_unknown_blocks_is_refused() -> None:
    denoiser = small.unet(down=("ResnetDownsampleBlock2D", small.CROSS))
    assert plan_of(denoiser) is None
    with pytest.raises(UsageError, match="a U-Net with Stable Diffusion's blocks"):
        choose_cut(denoiser, (), small.call(denoiser), 2)
