"""Half and pipelined steps of networks that are cut by plan, on a pair: as the single-process reference."""

import json
from typing import Any

import pytest

from tests.dist.plans_worker import CASES, PIPELINES
from tests.dist.processes import run

Seen = list[dict[str, Any]]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    directory = tmp_path_factory.mktemp("plans")
    run(2, "tests/dist/plans_worker.py", str(directory)).succeeded()
    return [json.loads((directory / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", PIPELINES)
def test_latents_equal_the_reference_bit_for_bit_on_both_ranks(name: str, case: str, seen: Seen) -> None:
    for rank in seen:
        found = rank[name][case]
        assert found["equal"] and found["again"] and found["curves_equal"]
        assert found["checksum"] == seen[0][name][case]["checksum"]
    kinds = seen[0][name][case]["kinds"]
    assert "h" in kinds and (case == "adaptive" or kinds == "ffhhsfpphf")


@pytest.mark.timeout(300)
def test_without_a_plan_adaptive_runs_without_half_steps_and_one_rank_logs_it_once(seen: Seen) -> None:
    first, second = (rank["without a plan"]["adaptive"] for rank in seen)
    assert first["equal"] and first["again"] and second["checksum"] == first["checksum"]
    assert set(first["kinds"]) == {"f", "s"}
    expected = "UncutTransformer has no plan where to cut it, so schedule adaptive runs without half steps"
    assert first["warnings"] == [expected] and second["warnings"] == []
