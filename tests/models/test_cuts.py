"""The choice of a cut from FLOPs counted on the meta device."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hybridiff.errors import UsageError
from hybridiff.models.cuts import Block, Cut, choose_cut
from hybridiff.models.cuts.choose import best_cut
from hybridiff.models.cuts.flops import FlopCount, count_blocks, one_row
from hybridiff.models.cuts.plans import require_plan
from tests.models import small_denoisers as small


def _chain(length: int) -> tuple[Block, ...]:
    return tuple(Block(f"b{i}", (f"b{i - 1}",) if i else ()) for i in range(length))


def _hourglass(depth: int) -> tuple[Block, ...]:
    """Blocks down, a middle one, and as many up, each of which reads its opposite."""
    chain = _chain(2 * depth + 1)
    return tuple(Block(a.path, (*a.inputs, f"b{2 * depth - i}") if i > depth else a.inputs) for i, a in enumerate(chain))


def test_a_chain_is_cut_where_it_is_most_even() -> None:
    cut = best_cut(_chain(5), [3, 1, 1, 1, 2], [7] * 5, 2)
    assert cut == Cut(_chain(5), (0, 0, 1, 1, 1), 2, (4, 4), (7,) * 5)
    assert cut.crossing == (("b1", 1),)
    assert (cut.reads(0), cut.reads(1), cut.prediction, cut.largest_share) == (0, 7, 1, 0.5)


def test_a_chain_is_cut_in_four_at_once() -> None:
    cut = best_cut(_chain(6), [4, 1, 3, 3, 1, 4], [7] * 6, 4)
    assert (cut.owners, cut.flops) == ((0, 1, 1, 2, 2, 3), (4, 4, 4, 4))
    assert cut.crossing == (("b0", 1), ("b2", 2), ("b4", 3))
    uneven = best_cut(_chain(5), [6, 2, 2, 2, 4], [7] * 5, 4)  # in halves of (8, 8) or (6, 10) first, none would be as even
    assert (uneven.flops, uneven.largest_share) == ((6, 4, 2, 4), 0.375)


NESTED = (  # FLOPs of b0 to b4 in percent, and the blocks of the deep region
    ([20, 10, 44, 6, 20], {"b2"}),  # 56 %, and b1 and b2 cross: 16 + 4 elements
    ([20, 11, 42, 7, 20], {"b2", "b3"}),  # 58 % would be too uneven: b1 and b3 cross, 16 + 16 elements
    ([10, 20, 40, 20, 10], {"b2"}),  # 60 %, and none is more even
    ([25, 12, 26, 12, 25], {"b1", "b2", "b3"}),
)


@pytest.mark.parametrize(("flops", "deep"), NESTED)
def test_a_network_with_skips_is_cut_into_a_deep_and_an_outer_region(flops: list[int], deep: set[str]) -> None:
    cut = best_cut(_hourglass(2), flops, [64, 16, 4, 16, 64], 2)
    regions = [{block.path for block in cut.blocks if cut.owner(block.path) == segment} for segment in range(2)]
    assert deep in regions
    assert sum(cut.flops) == 100 and cut.largest_share <= 0.6


def test_an_output_crosses_once_for_each_segment_that_reads_it() -> None:
    cut = Cut(_hourglass(2), (0, 1, 2, 0, 1), 3, (1, 1, 1), (64, 16, 4, 16, 64))
    assert cut.crossing == (("b0", 1), ("b1", 0), ("b1", 2), ("b2", 0), ("b3", 1))
    assert [cut.reads(segment) for segment in range(3)] == [20, 80, 16]


def test_the_segment_that_reads_least_comes_first() -> None:
    flops = [20, 10, 44, 6, 20]
    assert best_cut(_hourglass(2), flops, [64, 16, 4, 16, 64], 2).owners == (0, 0, 1, 0, 0)  # the outer one reads 4
    assert best_cut(_hourglass(2), flops, [64, 4, 16, 32, 64], 2).owners == (1, 1, 0, 1, 1)  # the deep one reads 4


def test_only_1_2_or_4_segments() -> None:
    assert best_cut(_hourglass(1), [1, 1, 1], [1, 1, 1], 1).crossing == ()
    with pytest.raises(UsageError, match="segments is 3; allowed: 1, 2, 4"):
        best_cut(_chain(5), [1] * 5, [1] * 5, 3)


@pytest.mark.parametrize("name", [*small.UNETS, *small.TRANSFORMERS])
def test_cuts_of_small_denoisers_do_not_depend_on_the_batch(name: str) -> None:
    denoiser = small.build(name)
    blocks = require_plan(denoiser)
    counted = count_blocks(denoiser, blocks, (), small.call(denoiser, rows=1))
    assert counted == count_blocks(denoiser, blocks, (), small.call(denoiser, rows=6))
    for segments in (1, 2, 4):
        cut = best_cut(blocks, *counted, segments)
        assert cut.segments == segments and sum(cut.flops) == sum(counted[0]) and min(cut.flops) > 0
        reads = [cut.reads(segment) for segment in range(segments)]
        assert reads == sorted(reads) and (reads[-1] > 0) == (segments > 1)


def test_the_denoiser_is_not_modified() -> None:
    denoiser = small.build("two levels")
    before = {name: value.clone() for name, value in denoiser.state_dict().items()}
    choose_cut(denoiser, (), small.call(denoiser), 2)
    assert all(torch.equal(value, before[name]) for name, value in denoiser.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in denoiser.modules())


def test_arguments_may_come_by_position_and_tensors_at_any_depth() -> None:
    config: dict[str, Any] = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    denoiser = small.unet(**config, projection_class_embeddings_input_dim=6 * 8 + 5)
    call = small.call(denoiser, rows=4)
    call["added_cond_kwargs"] = {"text_embeds": torch.ones(4, 5), "time_ids": torch.ones(4, 6)}
    args = tuple(call.pop(name) for name in ("sample", "timestep", "encoder_hidden_states"))
    half = tuple(a.bfloat16() if a.is_floating_point() else a for a in args)
    assert choose_cut(denoiser, half, call, 2) == choose_cut(denoiser, args, call, 2)


@pytest.mark.parametrize("name", ["as SDXL", "SD3.5 medium", "Sana"])
@torch.no_grad()
def test_the_sum_equals_torchs_own_counter(name: str) -> None:
    denoiser = small.build(name).to("meta")
    call = one_row(denoiser, (), small.call(small.build(name)))[1]
    with FlopCounterMode(display=False) as expected:
        denoiser(**call)
    with FlopCount() as counted:
        denoiser(**call)
    assert counted.total == expected.get_total_flops() > 0


def test_convolutions_are_counted() -> None:
    denoiser = small.build("no attention")
    blocks = require_plan(denoiser)
    flops, elements = count_blocks(denoiser, blocks, (), small.call(denoiser, rows=2, size=16))
    assert (flops[0], elements[0]) == (2 * 4 * 9 * 8 * 16 * 16, 8 * 16 * 16)
    assert flops[-2] == 0 and flops[-1] == 2 * 8 * 9 * 4 * 16 * 16


def test_linear_layers_and_attention_are_counted() -> None:
    denoiser = small.build("PixArt")
    flops, elements = count_blocks(denoiser, require_plan(denoiser), (), small.call(denoiser, rows=2, size=16))
    tokens, width, text = 8 * 8, 8, small.TEXT
    own = 4 * tokens * width**2 + 2 * tokens**2 * width
    cross = 2 * tokens * width**2 + 2 * text * width**2 + 2 * tokens * text * width
    assert flops == [2 * (own + cross + 8 * tokens * width**2)] * 4
    assert elements == [tokens * width] * 4


def test_a_call_that_skips_blocks_is_refused() -> None:
    denoiser = small.build("SD3")
    with pytest.raises(UsageError, match="SD3Transformer2DModel skips blocks"):
        choose_cut(denoiser, (), {**small.call(denoiser), "skip_layers": [1]}, 2)


def test_fewer_blocks_than_segments_are_refused() -> None:
    kind, config = small.TRANSFORMERS["PixArt"]
    denoiser: nn.Module = kind(**{**config, "num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 4})
    with pytest.raises(UsageError, match="has 3 blocks; allowed: at least 4"):
        choose_cut(denoiser, (), small.call(denoiser), 4)
