"""A pair against one rank: the same images, by one exchange per step."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.dist.pair_worker import STEPS
from tests.dist.processes import run


@pytest.fixture(scope="module", params=["xl", "sd3"])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    directory: Path = tmp_path_factory.mktemp(request.param)
    run(2, "tests/dist/pair_worker.py", request.param, str(directory)).succeeded()
    return [json.loads((directory / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.timeout(300)
def test_latents_equal_the_two_branches_one_after_the_other(seen: list[dict[str, Any]]) -> None:
    for rank in seen:
        assert len(rank["cases"]) >= 4
        for case in rank["cases"]:
            assert case["equal_to_reference"], case["case"]


def test_latents_are_those_of_the_stock_pipeline(seen: list[dict[str, Any]]) -> None:
    for rank in seen:
        for case in rank["cases"]:
            assert case["distance_to_stock"] <= 1e-4, case["case"]


def test_both_ranks_hold_the_same_images(seen: list[dict[str, Any]]) -> None:
    assert [c["checksum"] for c in seen[0]["cases"]] == [c["checksum"] for c in seen[1]["cases"]]
    assert seen[0]["without_generator"] == seen[1]["without_generator"]


def test_two_calls_in_a_row_give_the_same(seen: list[dict[str, Any]]) -> None:
    assert all(case["second_call_equal"] for rank in seen for case in rank["cases"])


def test_one_exchange_per_step(seen: list[dict[str, Any]]) -> None:
    assert {case["collectives"] for rank in seen for case in rank["cases"]} == {2 * STEPS}


def test_discrepancy_is_recorded_for_each_image_and_step(seen: list[dict[str, Any]]) -> None:
    for case in seen[0]["cases"]:
        batch, guidance, _ = case["case"]
        expected = [STEPS] * batch if guidance > 1 else []
        assert [len(curve) for curve in case["curves"]] == expected


def test_different_seeds_are_refused_on_both_ranks(seen: list[dict[str, Any]]) -> None:
    assert all("the inputs differ between ranks of a group" in rank["different_seeds"] for rank in seen)


def test_hooks_come_and_go(seen: list[dict[str, Any]]) -> None:
    for rank in seen:
        assert (rank["hooks_before"], rank["hooks"], rank["hooks_after"]) == ([], ["hybridiff"], [])
        assert rank["forward_is_own"]
        assert rank["stock_again"] and rank["parallel_again"]
