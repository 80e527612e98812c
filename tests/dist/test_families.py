"""PixArt and Sana, whose stock pipelines differ most from Stable Diffusion's, on groups of two and four: as the reference."""

import json
from typing import Any

import pytest

from tests.dist.families_worker import CASES, MAKERS
from tests.dist.processes import run

Seen = list[dict[str, Any]]


@pytest.fixture(scope="module", params=[2, 4])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    ranks, directory = request.param, tmp_path_factory.mktemp("families")
    run(ranks, "tests/dist/families_worker.py", str(directory)).succeeded()
    return [json.loads((directory / f"{rank}.json").read_text()) for rank in range(ranks)]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", MAKERS)
def test_latents_equal_the_reference_bit_for_bit_on_every_rank(kind: str, case: str, seen: Seen) -> None:
    for rank in seen:
        found = rank[kind][case]
        assert found["equal"] and found["again"] and found["curves_equal"]
        assert found["checksum"] == seen[0][kind][case]["checksum"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", MAKERS)
def test_kinds_of_steps(kind: str, seen: Seen) -> None:
    kinds = {name: case["kinds"] for name, case in seen[0][kind].items()}
    alone = "fff" if len(seen) == 2 else "ffh"  # two rows: four ranks pipeline segments of the network
    assert (kinds["full"], kinds["script"], kinds["no guidance"]) == ("fff", "ffhhsfpphf", alone)
    assert "s" in kinds["adaptive"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", MAKERS)
def test_latents_are_those_of_the_stock_pipeline(kind: str, seen: Seen) -> None:
    assert max(rank[kind]["full"]["distance_to_stock"] for rank in seen) < 1e-5
