"""Plans are correct: a block reads the outputs that its plan lists, and no others."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import pytest
import torch
from diffusers import FluxTransformer2DModel, QwenImageTransformer2DModel, UNet2DConditionModel
from torch import Tensor, nn

from hybridiff.errors import UsageError
from hybridiff.models.cuts import Block, choose_cut, plan_of, plans
from hybridiff.models.cuts.choose import best_cut
from hybridiff.models.cuts.flops import count_blocks, count_row
from hybridiff.models.inputs import map_tensors, tensors_in
from hybridiff.parallel.activations import BlockHooks, build_output, output_layout, output_tensors, tensor_layouts
from tests.models import small_denoisers as small
from tests.models import small_transformers

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
        module.forward = forwards[path]
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
    return map_tensors(lambda tensor: torch.full_like(tensor, torch.nan), output)


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
    return readers, any(tensor.isnan().any() for tensor in tensors_in(predicted))


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


@pytest.mark.parametrize("segments", [2, 4])
@pytest.mark.parametrize("name", small_transformers.TRANSFORMERS)
@torch.no_grad()
def test_segments_fed_with_fresh_activations_compute_what_the_whole_network_does(name: str, segments: int) -> None:
    """Bit for bit, with NaN in place of all outputs that a segment does not read, and by layout as they travel."""
    torch.manual_seed(1)
    denoiser = small.build(name)
    call = small.call(denoiser)
    cut = best_cut(_plan(denoiser), *_counted(name, denoiser), segments)
    hooks, whole = BlockHooks(denoiser), dict[str, Any]()
    hooks.install(block.path for block in cut.blocks)
    with hooks.execution({}, whole.__setitem__):
        expected = denoiser(**call)[0]
    for segment in range(segments):
        read = {path for path, reader in cut.crossing if reader == segment}
        others = [block.path for block in cut.blocks if cut.owner(block.path) != segment]
        cached = {path: _travelled(whole[path]) if path in read else _spoilt(whole[path]) for path in others}
        computed = dict[str, Any]()
        with hooks.execution(cached, computed.__setitem__):
            predicted = denoiser(**call)[0]
        assert set(computed) == {block.path for block in cut.blocks if cut.owner(block.path) == segment}
        for path, output in computed.items():
            assert all(map(torch.equal, _parts(output), _parts(whole[path]))), path
        same = all(map(torch.equal, tensors_in(predicted), tensors_in(expected)))
        assert same == (segment == cut.prediction)


def _travelled(output: Output) -> Output:
    """An output after it was flattened, sent to another rank, and built again."""
    layout = output_layout(output)
    layouts = tensor_layouts(layout)
    sent = [inner.flatten(tensor).clone() for inner, tensor in zip(layouts, output_tensors(output), strict=True)]
    built: Output = build_output(layout, [inner.unflatten(flat) for inner, flat in zip(layouts, sent, strict=True)])
    return built


def _counted(name: str, denoiser: nn.Module) -> tuple[list[int], list[int]]:
    """FLOPs and elements of each block."""
    row = map_tensors(lambda tensor: tensor.to("meta"), small.call(denoiser, rows=1))
    counted = count_row(denoiser, _plan(denoiser), (), row)
    if name not in small_transformers.ROWS_ELSEWHERE:
        assert counted == count_blocks(denoiser, _plan(denoiser), (), small.call(denoiser, rows=3))
    return counted


@pytest.mark.parametrize("name", small_transformers.TRANSFORMERS)
def test_segments_have_about_equal_flops(name: str) -> None:
    denoiser = small.build(name)
    flops, elements = _counted(name, denoiser)
    assert min(flops) > 0
    halves = best_cut(_plan(denoiser), flops, elements, 2)
    assert 0.5 <= halves.largest_share <= (0.5 + max(flops) / sum(flops) / 2)
    joins = 2 if name == "HunyuanDiT" else 1  # its skip connections make an inner and an outer segment
    assert len(halves.crossing) == joins


def test_whole_networks_are_cut_into_halves() -> None:
    """Counted for FLUX.1 and Qwen-Image at 1024 x 1024, on the meta device."""
    tokens, text, grid = 4096, 512, 64
    ids = {"img_ids": torch.empty(tokens, 3), "txt_ids": torch.empty(text, 3)}
    time = {"timestep": torch.empty(1), "return_dict": False}
    flux = {"pooled_projections": torch.empty(1, 768), "encoder_hidden_states": torch.empty(1, text, 4096), **ids, **time}
    qwen = {"encoder_hidden_states": torch.empty(1, text, 3584), "img_shapes": [[(1, grid, grid)]], **time}
    for kind, call in ((FluxTransformer2DModel, flux), (QwenImageTransformer2DModel, qwen)):
        with torch.device("meta"):
            denoiser = kind()
        cut = choose_cut(denoiser, (), {"hidden_states": torch.empty(1, tokens, 64), **call}, 2)
        assert cut.largest_share < 0.51 and len(cut.crossing) == 1
        assert cut.reads(1) == (tokens + text) * 3072


@pytest.mark.parametrize("layers", [4, 6, 8])
def test_long_skip_connections(layers: int) -> None:
    kind, config, _ = small_transformers.TRANSFORMERS["HunyuanDiT"]
    denoiser = kind(**config | {"num_layers": layers})
    blocks, half = [f"blocks.{i}" for i in range(layers)], layers // 2
    inputs = [block.inputs for block in _plan(denoiser)]
    assert inputs[: half + 1] == [(), *((blocks[i - 1],) for i in range(1, half + 1))]
    assert inputs[half + 1 :] == [(blocks[i - 1], blocks[layers - 1 - i]) for i in range(half + 1, layers)]


def test_plans_are_of_classes_that_diffusers_has() -> None:
    for name in plans._DIFFUSERS:
        kind = getattr(diffusers, name)
        assert plans.has_plan(name) and issubclass(kind, diffusers.ModelMixin)
    assert not plans.has_plan("CogVideoXTransformer3DModel") and not plans.has_plan("NoSuchModel")


def test_a_class_of_the_same_name_has_no_plan() -> None:
    assert plan_of(type("FluxTransformer2DModel", (nn.Linear,), {})(2, 2)) is None


def test_a_class_without_a_plan_is_refused_with_the_ways_out() -> None:
    denoiser = nn.Linear(2, 2)
    assert plan_of(denoiser) is None
    expected = "is a Linear, which has no plan where to cut it.*register_plan.*UNet2DConditionModel, SD3Transformer2DModel"
    with pytest.raises(UsageError, match=expected):
        choose_cut(denoiser, (torch.ones(2, 2),), {}, 2)


def test_a_u_net_of_unknown_blocks_is_refused() -> None:
    denoiser = small.unet(down=("ResnetDownsampleBlock2D", small.CROSS))
    assert plan_of(denoiser) is None
    with pytest.raises(UsageError, match="a U-Net with Stable Diffusion's blocks"):
        choose_cut(denoiser, (), small.call(denoiser), 2)
