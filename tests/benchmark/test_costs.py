"""What steps cost: ideal speed-ups of every placement by hand, times of single steps, and a pair's bytes."""

import pytest

from hybridiff.errors import UsageError
from hybridiff.models.cuts import Block, Cut, choose_cut
from hybridiff.schedule import StepKind
from jobs.benchmark.config import BytesConfig, CostsConfig
from jobs.benchmark.costs import (
    LargestSegment,
    expect,
    ideal_speedup,
    measure_costs,
    pair_bytes,
    published_bytes,
    rank_cost,
    read_pattern,
)
from jobs.benchmark.networks import random_embeddings, untrained_mmdit, untrained_pipeline

FULL, HALF, SKIP, PIPELINED = StepKind.FULL, StepKind.HALF, StepKind.SKIP, StepKind.PIPELINED


@pytest.mark.parametrize(("half", "expected"), [(0, 2.00), (5, 2.11), (20, 2.50), (30, 2.86)])
def test_the_papers_windows_on_a_pair(half: int, expected: float) -> None:
    assert ideal_speedup(50, {FULL: 50 - half, HALF: half}, 2, 1) == pytest.approx(expected, abs=0.005)


COSTS = {  # group size, images: full, half, pipelined, by segments of 0.6 and 0.3
    (1, 1): (2, 1, 2),
    (2, 1): (1, 0.6, 1.2),
    (2, 3): (1, 0.6, 1.2),
    (4, 1): (1, 0.3, 0.6),
    (4, 2): (0.5, 0.3, 0.6),
    (4, 3): (2 / 3, 0.4, 0.6),
}


@pytest.mark.parametrize("placement", COSTS)
def test_cost_of_each_kind_of_step(placement: tuple[int, int]) -> None:
    found = [rank_cost({kind: 1}, *placement, LargestSegment(0.6, 0.3)) for kind in (FULL, HALF, PIPELINED)]
    assert found == pytest.approx(COSTS[placement])
    assert rank_cost({SKIP: 7}, *placement, LargestSegment()) == 0


def test_fewer_steps_are_faster_by_their_number() -> None:
    assert ideal_speedup(50, {FULL: 25}, 1, 4) == 2
    assert ideal_speedup(50, {FULL: 25}, 2, 4) == 4


def test_skips_cost_nothing_and_an_uneven_cut_costs_its_larger_segment() -> None:
    counts = {FULL: 10, HALF: 20, SKIP: 20}
    assert ideal_speedup(50, counts, 2, 1) == pytest.approx(100 / 20)
    assert ideal_speedup(50, counts, 2, 1, LargestSegment(0.56, 0.3)) == pytest.approx(100 / 21.2)


def test_patterns_of_steps() -> None:
    assert read_pattern("F2  H1 S1 F1") == [FULL, FULL, HALF, SKIP, FULL]
    for wrong in ("", "F", "X3", "F3H2", "3F", "F5 P5", "H5", "S5 F5", "F0 H5", "F5 H0"):
        with pytest.raises(UsageError, match=r"F15 H5 F30"):
            read_pattern(wrong)


def test_expected_speedups() -> None:
    counts = {kind: read_pattern("F2 H2 S4").count(kind) for kind in StepKind}
    found = expect(both_ms=10.0, branch_ms=6.0, segment_ms=4.0, counts=counts)
    assert found.pair == pytest.approx(80 / (2 * 6 + 2 * 4))
    assert found.alone == pytest.approx(80 / (2 * 10 + 2 * 6))


def test_each_segment_runs_its_own_blocks_and_leaves_the_network_unchanged() -> None:
    denoiser = untrained_mmdit(blocks=4, heads=1).eval()
    pipeline = untrained_pipeline(denoiser)
    calls: list[tuple[str, int]] = []
    for index, block in enumerate(denoiser.transformer_blocks):
        block.attn.to_q.register_forward_hook(lambda _module, _args, out, i=index: calls.append((f"{i}", len(out))))
    seen: list[tuple[tuple, dict]] = []
    hook = denoiser.register_forward_pre_hook(lambda _module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    pipeline(**random_embeddings(pipeline, [0], 4), num_inference_steps=1, height=64, width=64, output_type="latent")
    hook.remove()
    calls.clear()
    costs = measure_costs(denoiser, *seen[0], CostsConfig(patterns=["F1 H1"], repeats=1))
    assert len(costs.segments_ms) == 2 and costs.both_ms > 0 and costs.branch_ms > 0
    assert list(costs.expected) == ["F1 H1"]
    assert choose_cut(denoiser, *seen[0], 2).owners == (0, 0, 1, 1)
    one = [("0", 1), ("1", 1), ("2", 1), ("3", 1)]
    turn = [(name, 2) for name, _ in one] + one + one[:2] + one[2:]
    assert calls == one + 2 * turn


BLOCKS = (Block("a", ()), Block("b", ("a",)), Block("c", ("b", "a")))
NESTED = Cut(BLOCKS, owners=(1, 0, 1), segments=2, flops=(5, 5), elements=(10, 30, 4))  # 0 reads a (10), 1 reads b (30)

BYTES = {
    "F4": 4 * 2 * 4,
    "F1 H1 F1": 2 * 2 * 4 + 4 + 10,  # before it a for rank 0; after it only the prediction
    "F1 H3 F1": 2 * 2 * 4 + 3 * 4 + 10 + 2 * 40,
    "F1 H1 S1 H1 F1": 2 * 2 * 4 + 2 * 4 + 10 + 40,  # a skip does not end a run
    "F1 H1 F1 H1": 2 * 2 * 4 + 2 * 4 + 2 * 10,
}


@pytest.mark.parametrize("pattern", BYTES)
def test_bytes_of_a_pattern(pattern: str) -> None:
    assert pair_bytes(NESTED, 4, read_pattern(pattern), 1, 1) == BYTES[pattern]
    assert pair_bytes(NESTED, 4, read_pattern(pattern), 3, 2) == 6 * BYTES[pattern]


def test_sdxl_at_1024_sends_less_than_30_mb_for_the_papers_window() -> None:
    found = published_bytes(BytesConfig(patterns=["F15 H5 F30", "F50"]))
    prediction, read_by_deep, read_by_outer = 2 * 4 * 128 * 128, 2 * 640 * 32 * 32, 2 * 1280 * 32 * 32
    assert found["F50"] == 100 * prediction
    assert found["F15 H5 F30"] == 95 * prediction + 5 * read_by_deep + 4 * read_by_outer <= 30e6


@pytest.mark.parametrize(
    ("group_size", "images", "expected"),
    [(1, 3, (1, 1)), (2, 4, (1 / 2, 1 / 2)), (2, 3, (2 / 3, 2 / 3)), (2, 1, (1, 0.6)), (4, 1, (1, 0.3)), (4, 2, (1 / 2, 0.3))],
)
def test_without_guidance_ranks_share_images_or_the_network(group_size: int, images: int, expected: tuple[float, float]) -> None:
    found = [rank_cost({kind: 1}, group_size, images, LargestSegment(0.6, 0.3), 1) for kind in (FULL, HALF)]
    assert found == pytest.approx(expected)
    assert ideal_speedup(50, {FULL: 15, SKIP: 35}, 1, 4, branches=1) == pytest.approx(50 / 15)
