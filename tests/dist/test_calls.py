"""Pipelines of all families on a pair: as the stock pipeline, as the reference bit for bit, and one collective in a step."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.dist.processes import run
from tests.dist.tiny_families import BRANCHES, CASES

Seen = list[dict[str, Any]]


FOUR = ("flux", "flux-dev", "z-image")


def seen_by(ranks: int, directory: Path, *names: str) -> Seen:
    run(ranks, "tests/dist/calls_worker.py", str(directory), *names).succeeded()
    return [json.loads((directory / f"{rank}.json").read_text()) for rank in range(ranks)]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return seen_by(2, tmp_path_factory.mktemp("calls"))


def check(name: str, seen: Seen) -> None:
    for rank in seen:
        for case, found in rank[name].items():
            assert found["equal"] and found["checksum"] == seen[0][name][case]["checksum"], case
            assert found["kinds"] != "F4" or found["distance"] < 1e-4, case
    assert "S" in seen[0][name]["adaptive"]["kinds"]
    assert name not in FOUR or "H" in seen[0][name]["half"]["kinds"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", CASES)
def test_a_pair_computes_what_the_stock_pipeline_and_the_reference_do(name: str, seen: Seen) -> None:
    check(name, seen)


@pytest.mark.timeout(600)
def test_four_ranks_do_too(tmp_path: Path) -> None:
    found = seen_by(4, tmp_path, *FOUR)
    for name in FOUR:
        check(name, found)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", CASES)
def test_there_is_one_collective_in_a_step(name: str, seen: Seen) -> None:
    first = 2 if name in BRANCHES else 1  # each call of the first step is computed as it is
    first += name == "qwen-2.1"  # and of the second one, as the first fills caches
    assert seen[0][name]["full"]["collectives"] == first + 3
    adaptive = seen[0][name]["adaptive"]
    assert adaptive["collectives"] < first + 7
