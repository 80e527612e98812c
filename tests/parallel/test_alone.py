"""The built-in schedules on a group of one, compared with the reference."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hybridiff.parallel import parallelize
from hybridiff.parallel.reference import emulate
from hybridiff.schedule import Adaptive, Async, Paper, Refresh, Schedule
from tests.dist.tiny import latents_of, tiny_sd3, tiny_xl

SCHEDULES: dict[str, tuple[Schedule, str]] = {
    "paper": (Paper(slope_window=2, tau_cap=4, k=3), "ffffhhhfff"),
    "paper carried": (Paper(slope_window=2, slope_threshold=1e-12, tau_cap=4, k=3, guidance="carry"), "ffffhhhfff"),
    "refresh": (Refresh(first=3, refresh_every=2), "fffhhfhhff"),
    "async": (Async(warm_up=3, stride=2), "fffspspsps"),
    "async shifted": (Async(warm_up=3, time_shift=True), "fffppppppp"),
    "adaptive without skips": (Adaptive(tolerance=1e9, min_full_steps=3, max_skip_steps=0), "fffhhhhfff"),
}


def rows_of_calls(pipeline: Any) -> list[int]:
    """Filled with the rows of each call of the denoiser's first layer."""
    rows: list[int] = []
    denoiser = pipeline.components.get("unet", pipeline.components.get("transformer"))
    first = denoiser.conv_in if hasattr(denoiser, "conv_in") else denoiser.pos_embed
    first.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    return rows


@pytest.mark.parametrize("make", [tiny_xl, tiny_sd3])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_group_of_one_equals_the_reference(name: str, make: Callable[[], Any]) -> None:
    schedule, kinds = SCHEDULES[name]
    pipeline = make()
    handle = emulate(pipeline, schedule, 1)
    expected = latents_of(pipeline, 2, 10)
    handle.remove()
    rows = rows_of_calls(pipeline)
    handle = parallelize(pipeline, schedule, 1)
    latents = latents_of(pipeline, 2, 10)
    assert "".join(kind.value[0] for kind in handle.trace.kinds) == kinds
    assert rows == [{"f": 4, "p": 4, "h": 2}[kind] for kind in kinds if kind != "s"]
    assert torch.equal(latents, expected) and torch.equal(latents_of(pipeline, 2, 10), expected)
    handle.remove()


@pytest.mark.parametrize("make", [tiny_xl, tiny_sd3])
def test_pipelined_steps_on_one_rank_are_full_ones(make: Callable[[], Any]) -> None:
    pipeline = make()
    stock = latents_of(pipeline, 2, 6)
    handle = parallelize(pipeline, Async(warm_up=2), 1)
    assert torch.equal(latents_of(pipeline, 2, 6), stock)
    handle.remove()
