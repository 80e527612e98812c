"""PixArt and Sana, whose stock pipelines differ most from Stable Diffusion's, on groups of two and four: as the reference."""

import json
from pathlib import Path

import pytest

from tests.dist.processes import run


@pytest.mark.timeout(300)
@pytest.mark.parametrize("ranks", [2, 4])
def test_pixart_and_sana_equal_the_reference_bit_for_bit_on_every_rank(ranks: int, tmp_path: Path) -> None:
    run(ranks, "tests/dist/families_worker.py", str(tmp_path)).succeeded()
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(ranks)]
    for rank in seen:
        assert list(rank) == ["alpha", "sigma", "sana"]
        for kind, cases in rank.items():
            for name, case in cases.items():
                assert case["equal"] and case["again"] and case["curves_equal"], (kind, name)
                assert case["checksum"] == seen[0][kind][name]["checksum"], (kind, name)
            kinds = {name: case["kinds"] for name, case in cases.items()}
            assert (kinds["full"], kinds["script"], kinds["no guidance"]) == ("fff", "ffhhsfpphf", "fff")
            assert "s" in kinds["adaptive"]
            assert cases["full"]["distance_to_stock"] < 1e-6
