"""Cuts of published denoisers at their own sizes: built on the meta device, without weights."""

from functools import cache

import pytest
import torch

from hybridiff.models.cuts import Block, Cut
from hybridiff.models.cuts.choose import best_cut
from hybridiff.models.cuts.flops import count_blocks
from hybridiff.models.cuts.plans import require_plan
from jobs.benchmark import published

SIZES = {"sd-1.5": 512, "sd-1.5-inpainting": 512, "sd-2.1": 768}  # in pixels; 1024 for all others
PARAMETERS = {"sd-1.5": 860, "sdxl": 2567, "sd3-medium": 2028, "sd3.5-large": 8057, "pixart-sigma": 611, "sana-1.6b": 1604}  # 1e6
DEEP = ["down_blocks.2", "mid_block", "up_blocks.0.resnets.0", "up_blocks.0.attentions.0", "up_blocks.0.resnets.1"]


@cache
def _counted(name: str, size: int) -> tuple[tuple[Block, ...], list[int], list[int]]:
    denoiser = published.build(name)
    blocks = require_plan(denoiser)
    return (blocks, *count_blocks(denoiser, blocks, *published.inputs(name, size, size, 2, torch.float16)))


def _cut(name: str, segments: int, size: int | None = None) -> Cut:
    return best_cut(*_counted(name, size or SIZES.get(name, 1024)), segments)


@pytest.mark.parametrize("name", PARAMETERS)
def test_it_has_as_many_parameters_as_was_published(name: str) -> None:
    parameters = sum(parameter.numel() for parameter in published.build(name).parameters())
    assert round(parameters / 1e6) == PARAMETERS[name]


@pytest.mark.parametrize("segments", [2, 4])
@pytest.mark.parametrize("name", [name for name in published.NAMES if name != "sdxl-inpainting"])  # which is SDXL but for conv_in
def test_it_is_cut_evenly(name: str, segments: int) -> None:
    cut = _cut(name, segments)
    assert cut.largest_share <= {2: 0.54, 4: 0.27}[segments]
    assert sorted(set(cut.owners)) == list(range(segments))
    reads = [cut.reads(segment) for segment in range(segments)]
    assert reads == sorted(reads) and reads[-1] > 0


def test_sdxl_is_cut_around_its_deepest_level() -> None:
    cut = _cut("sdxl", 2)
    assert 0.43 <= cut.flops[0] / sum(cut.flops) <= 0.57
    deep = [block.path for block in cut.blocks if cut.owner(block.path) == 0]
    assert deep == [block.path for block in cut.blocks if block.path.startswith(tuple(DEEP))]
    assert cut.crossing == (("down_blocks.1.downsamplers.0", 0), ("up_blocks.0.resnets.1", 1))
    assert (cut.reads(0), cut.reads(1), cut.prediction) == (640 * 32 * 32, 1280 * 32 * 32, 1)


def test_sdxl_at_2048_is_cut_one_layer_later() -> None:
    cut = _cut("sdxl", 2, size=2048)
    assert cut.crossing == (("down_blocks.1.downsamplers.0", 0), ("up_blocks.0.attentions.1", 1))
    assert (cut.reads(0), cut.reads(1)) == (640 * 64 * 64, 1280 * 64 * 64)
    assert cut.largest_share <= 0.52


def test_sd3_is_cut_in_the_middle() -> None:
    cut = _cut("sd3-medium", 2)
    assert 0.49 <= cut.flops[0] / sum(cut.flops) <= 0.51
    assert cut.crossing == (("transformer_blocks.11", 1),)
    assert cut.reads(1) == (64 * 64 + 77 + 256) * 1536


@pytest.mark.parametrize(("name", "last"), [("sd3.5-medium", 9), ("sd3.5-large", 18)])
def test_sd3_5_is_cut_near_half_its_flops(name: str, last: int) -> None:
    cut = _cut(name, 2)
    assert cut.largest_share <= 0.51  # the blocks with two attentions, which come first, cost more
    assert cut.crossing == ((f"transformer_blocks.{last}", 1),)
