"""Groups of two and four against the reference, which is one process: the same bits, and exactly the exchanges needed."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tests.dist.group_worker import case_names
from tests.dist.processes import run
from tests.dist.tiny import SIZE
from tests.optional import needs

Seen = list[dict[str, Any]]


def seen_by(ranks: int, directory: Path, device: str = "cpu") -> Seen:
    run(ranks, "tests/dist/group_worker.py", str(directory), device, timeout_s=500).succeeded()
    return [json.loads((directory / f"{rank}.json").read_text()) for rank in range(ranks)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return seen_by(2, tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return seen_by(4, tmp_path_factory.mktemp("four"))


@pytest.fixture(params=["pair", "four"])
def seen(request: pytest.FixtureRequest) -> Seen:
    found: Seen = request.getfixturevalue(request.param)
    return found


def check(seen: Seen, section: str, name: str) -> None:
    """One case, which every rank generated twice in a row, equals the reference."""
    for rank in seen:
        case = rank[section][name]
        assert case["equal"], "not the reference's latents"
        assert case["again"], "the second time, other latents"
        assert case["curves_equal"], "not the reference's discrepancies"
        assert case["checksum"] == seen[0][section][name]["checksum"], "not the latents of rank 0"


CASES = [(group, *case) for group, ranks in (("pair", 2), ("four", 4)) for case in case_names(ranks)]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("group", "section", "name"), CASES)
def test_latents_equal_the_reference_bit_for_bit_on_every_rank(
    group: str, section: str, name: str, request: pytest.FixtureRequest
) -> None:
    if section == "adapters":
        needs("peft", "lora")
    check(request.getfixturevalue(group), section, name)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("group", ["pair", "four"])
def test_no_case_is_left_unchecked(group: str, request: pytest.FixtureRequest) -> None:
    sections = ("scripts", "stock", "samplers", "options", "adapters", "schedules")
    for rank in request.getfixturevalue(group):
        generated = {(group, section, name) for section in sections for name in rank[section]}
        with_peft = importlib.util.find_spec("peft") is not None
        assert generated == {case for case in CASES if case[0] == group and (with_peft or case[1] != "adapters")}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("kind", ["xl", "sd3"])
def test_full_steps_generate_what_the_stock_pipeline_does(kind: str, images: int, seen: Seen) -> None:
    assert max(rank["stock"][f"{kind} {images}"]["distance_to_stock"] for rank in seen) < 1e-5


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["xl", "sd3"])
def test_kinds_of_steps(kind: str, seen: Seen) -> None:
    assert seen[0]["scripts"][f"{kind} FFHHSHFHhFF 1"]["kinds"] == "ffhhshfhhff"
    assert seen[0]["options"][f"{kind} no guidance"]["kinds"] == "ffff"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["xl", "sd3"])
def test_kinds_of_steps_of_the_products_schedules(kind: str, pair: Seen) -> None:
    kinds = {name: pair[0]["schedules"][f"{kind} {name}"]["kinds"] for name in ("adaptive", "paper", "refresh", "async")}
    assert "s" in kinds["adaptive"] and "h" in pair[0]["schedules"][f"{kind} adaptive without skips"]["kinds"]
    assert kinds["paper"].count("h") == 3
    assert (kinds["refresh"], kinds["async"]) == ("fffhhfhhff", "fffspspsps")


@pytest.mark.timeout(600)
def test_kinds_of_steps_with_other_samplers(pair: Seen) -> None:
    kinds = {name: case["kinds"] for name, case in pair[0]["samplers"].items()}
    two_a_step = kinds["HeunDiscrete scripted"], kinds["HeunDiscrete adaptive"]  # calls, but of the last step, which has one
    assert [len(calls) for calls in two_a_step] == [15, 19]
    assert all("s" in steps for name, steps in kinds.items() if name.endswith("adaptive"))


# One per computed step, and one more where a rank lacks what it reads: after a full step (the first segment of a chain reads
# nothing, and the other is run by the rank that had the conditional branch), after a step that kept all back (small letters), and
# in a group of four, whose lanes are the branches in a pipelined step and images in a half step, between these.
COLLECTIVES = {
    ("pair", "xl", "FFFF"): (4, 4),
    ("pair", "xl", "FFHHSHFHhFF"): (12, 12),
    ("pair", "xl", "FFPPFPHPSPHpF"): (14, 14),
    ("pair", "xl", "FhHF"): (6, 6),
    ("pair", "sd3", "FFFF"): (4, 4),
    ("pair", "sd3", "FFHHSHFHhFF"): (10, 10),
    ("pair", "sd3", "FFPPFPHPSPHpF"): (14, 14),
    ("pair", "sd3", "FhHF"): (5, 5),
    ("four", "xl", "FFFF"): (4, 4),
    ("four", "xl", "FFHHSHFHhFF"): (12, 12),
    ("four", "xl", "FFPPFPHPSPHpF"): (18, 18),
    ("four", "xl", "FhHF"): (6, 6),
    ("four", "sd3", "FFFF"): (4, 4),
    ("four", "sd3", "FFHHSHFHhFF"): (12, 10),  # one image: four segments, of which the second is run by an unconditional rank
    ("four", "sd3", "FFPPFPHPSPHpF"): (18, 18),
    ("four", "sd3", "FhHF"): (6, 5),
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("group", ["pair", "four"])
def test_collectives(group: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(group)
    expected = {
        f"{k} {s} {n}": c for (g, k, s), both in COLLECTIVES.items() if g == group for n, c in zip((1, 3), both, strict=True)
    }
    for rank in found:
        assert {name: case["collectives"] for name, case in rank["scripts"].items()} == expected


@pytest.mark.timeout(600)
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("kind", ["xl", "sd3"])
def test_a_pair_sends_exactly_what_crosses_the_cut_and_the_prediction(kind: str, images: int, pair: Seen) -> None:
    cut = pair[0]["cuts"][kind]
    prediction = 4 * images * 4 * SIZE * SIZE
    for rank in range(2):
        half = 4 * images * sum(elements for owner, _, elements in cut["crossing"] if owner == rank)
        half += prediction if cut["prediction"] == rank else 0
        fetched = 4 * images * sum(elements for _, reader, elements in cut["crossing"] if reader == 0) if rank == 1 else 0
        kept_back = prediction if cut["prediction"] == rank else 0
        sent = pair[rank]["scripts"][f"{kind} FFHHSHFHhFF {images}"]["bytes"]
        assert sent == 8 + 5 * prediction + 4 * half + kept_back + 2 * fetched  # 8: the fingerprint


@pytest.mark.timeout(600)
def test_a_rank_computes_no_more_than_the_largest_segment(seen: Seen) -> None:
    for kind in ("xl", "sd3"):
        shares = [share for rank in seen for share in rank["flops"][kind]]
        assert 0.98 <= max(shares) <= 1.02, shares


@pytest.mark.timeout(600)
def test_compiled_blocks_are_not_compiled_again_at_the_switches(pair: Seen) -> None:
    for rank in pair:
        for kind, blocks in (("xl", 1), ("sd3", 2)):  # SD3's last block differs, equal ones share a graph
            graphs = rank["graphs"][kind]
            assert graphs[0] >= blocks and len(set(graphs[:9])) == 1  # full, half and skip steps
            assert len(set(graphs[9:])) == 1  # pipelined steps have twice the rows: compiled once, at the first


@pytest.mark.timeout(600)
def test_hooks_come_and_go(seen: Seen) -> None:
    for rank in seen:
        for kind, blocks in (("xl", 17), ("sd3", 4)):
            before, during, after = rank["hooks"][kind]
            assert (before, during, after) == (["hybridiff"], ["hybridiff"] + ["hybridiff.block"] * blocks, [])


@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_that_share_one_gpu_equal_the_reference(ranks: int, tmp_path: Path) -> None:
    found = seen_by(ranks, tmp_path, "cuda")
    for section in ("scripts", "stock", "options"):
        for name in found[0][section]:
            check(found, section, name)
