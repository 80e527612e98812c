"""A pair's bytes: by hand on a small cut, and the real SDXL's."""

import pytest

from hybridiff.models.cuts import Block, Cut
from jobs.benchmark.config import BytesConfig
from jobs.benchmark.ideal import read_pattern
from jobs.benchmark.traffic import pair_bytes, published_bytes

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
def test_by_hand(pattern: str) -> None:
    assert pair_bytes(NESTED, 4, read_pattern(pattern), 1, 1) == BYTES[pattern]
    assert pair_bytes(NESTED, 4, read_pattern(pattern), 3, 2) == 6 * BYTES[pattern]


def test_sdxl_at_1024_moves_less_than_30_mb_for_the_papers_window() -> None:
    found = published_bytes(BytesConfig(patterns=["F15 H5 F30", "F50"]))
    prediction, read_by_deep, read_by_outer = 2 * 4 * 128 * 128, 2 * 640 * 32 * 32, 2 * 1280 * 32 * 32
    assert found["F50"] == 100 * prediction
    assert found["F15 H5 F30"] == 95 * prediction + 5 * read_by_deep + 4 * read_by_outer <= 30e6
