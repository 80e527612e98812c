"""Which GPUs have the fastest links between them, from what nvidia-smi prints."""

import os
import random
import time
from itertools import combinations, permutations
from pathlib import Path

import pytest

from hybridiff.cluster.topology import Placement, ask_links, parse_links, place, speed, visible_links
from hybridiff.errors import UsageError

NVLINK_PAIRS = """\
\t\x1b[4mGPU0\tGPU1\tGPU2\tGPU3\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tSYS\tNV4\tPHB\tSYS\t0-31\t0\t\tN/A
GPU1\tSYS\t X \tPHB\tNV4\tSYS\t0-31\t0\t\tN/A
GPU2\tNV4\tPHB\t X \tSYS\tNODE\t32-63\t1\t\tN/A
GPU3\tPHB\tNV4\tSYS\t X \tPIX\t32-63\t1\t\tN/A
NIC0\tSYS\tSYS\tNODE\tPIX\t X

Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes
"""
ALONE = "\tGPU0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\nGPU0\t X \t0-15\t0\t\tN/A\n\nLegend:\n\n  X    = Self\n"
CHAIN = (("X", "NV1", "SYS", "SYS"), ("NV1", "X", "NV4", "SYS"), ("SYS", "NV4", "X", "NV1"), ("SYS", "SYS", "NV1", "X"))


def test_the_table_is_read_between_escapes_nics_and_legend() -> None:
    assert parse_links(NVLINK_PAIRS) == (
        ("X", "SYS", "NV4", "PHB"),
        ("SYS", "X", "PHB", "NV4"),
        ("NV4", "PHB", "X", "SYS"),
        ("PHB", "NV4", "SYS", "X"),
    )
    assert parse_links(ALONE) == (("X",),)


@pytest.mark.parametrize("text", ["", "No devices were found\n", "Failed to initialize NVML: Unknown Error\n"])
def test_anything_else_is_no_table(text: str) -> None:
    assert parse_links(text) == ()


def test_links_compare_as_they_are_fast() -> None:
    kinds = ["?", "SYS", "NODE", "PHB", "PXB", "PIX", "NV1", "NV4", "NV18"]
    assert sorted(reversed(kinds), key=speed) == kinds


def test_pairs_lie_on_nvlink() -> None:
    assert place(parse_links(NVLINK_PAIRS), 4, 2) == Placement((0, 2, 1, 3), 2, ("NV4", "NV4"))
    assert place(parse_links(NVLINK_PAIRS), 4, 2).describe() == "0+2 (NV4), 1+3 (NV4)"


def test_the_slowest_pair_counts_first() -> None:
    assert place(CHAIN, 4, 2) == Placement((0, 1, 2, 3), 2, ("NV1", "NV1"))  # 1+2 on NV4 would leave 0+3 on SYS


def test_what_stays_idle_is_what_fits_worst() -> None:
    assert place(CHAIN, 2, 2) == Placement((1, 2), 2, ("NV4",), (0, 3))
    assert place(CHAIN, 2, 2).describe() == "1+2 (NV4); idle: 0, 3"
    odd = tuple(row[:3] for row in CHAIN[:3])
    assert place(odd, 2, 2).gpus == (1, 2)


def test_groups_of_four_and_of_one() -> None:
    eight = tuple(tuple("X" if i == j else "NV4" if i % 2 == j % 2 else "SYS" for j in range(8)) for i in range(8))
    assert place(eight, 8, 4).describe() == "0+2+4+6 (NV4), 1+3+5+7 (NV4)"
    assert place(CHAIN, 4, 1).describe() == "0, 1, 2, 3"


def test_sixteen_equal_gpus_keep_their_order() -> None:
    links = tuple(tuple("X" if i == j else "NV18" for j in range(16)) for i in range(16))
    assert place(links, 16, 2).gpus == tuple(range(16))


@pytest.mark.parametrize(("ranks", "group_size"), [(16, 2), (16, 4), (14, 2), (12, 4), (8, 4), (16, 8)])
@pytest.mark.parametrize("kind", ["alike", "two sockets", "mixed"])
def test_sixteen_gpus_are_placed_at_once(ranks: int, group_size: int, kind: str) -> None:
    chance = random.Random(0)
    links = [["X"] * 16 for _ in range(16)]
    for i, j in combinations(range(16), 2):
        near = "PIX" if i // 8 == j // 8 else "SYS"
        links[i][j] = links[j][i] = {"alike": "NV18", "two sockets": near, "mixed": chance.choice(["NV1", "NV2", "PIX", "SYS"])}[
            kind
        ]
    before = time.process_time()
    placement = place(tuple(map(tuple, links)), ranks, group_size)
    assert time.process_time() - before < 5.0
    assert sorted((*placement.gpus, *placement.idle)) == list(range(16)) and len(placement.gpus) == ranks
    if kind == "two sockets":
        assert set(placement.links) == {"PIX"}


@pytest.mark.parametrize("group_size", [2, 4])
def test_no_choice_is_better(group_size: int) -> None:
    for seed in range(20):
        chance = random.Random(seed)
        links = [["X"] * 6 for _ in range(6)]
        for i, j in combinations(range(6), 2):
            links[i][j] = links[j][i] = chance.choice(["NV1", "NV2", "PIX", "SYS"])
        found = place(tuple(map(tuple, links)), 4, group_size)

        def score(order: tuple[int, ...], links: list[list[str]] = links) -> tuple[int, int]:
            groups = [order[start : start + group_size] for start in range(0, 4, group_size)]
            speeds = [speed(links[i][j]) for group in groups for i, j in combinations(group, 2)]
            return min(speeds), sum(speeds)

        assert score(found.gpus) == max(map(score, permutations(range(6), 4)))


def test_gpus_that_do_not_answer_are_an_error_and_not_an_order_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("hybridiff.cluster.topology.ASK_S", 0.1)
    with pytest.raises(UsageError, match=r"nvidia-smi topo -m did not answer within .* allowed: .* trainer.devices as a list"):
        ask_links()
    monkeypatch.setattr("hybridiff.cluster.topology.ASK_S", 60.0)
    program.write_text("#!/bin/sh\necho no driver\nexit 9\n")
    with pytest.raises(UsageError, match=r"nvidia-smi topo -m: exit code 9: no driver; allowed: .* trainer.devices as a list"):
        ask_links()
    program.write_text("no program\n")
    with pytest.raises(UsageError, match=r"nvidia-smi topo -m: .*Exec format error.*; allowed: "):
        ask_links()
    program.write_text("#!/bin/sh\necho No devices were found\n")
    assert ask_links() == ()


def test_cuda_counts_only_visible_gpus() -> None:
    links = parse_links(NVLINK_PAIRS)
    assert visible_links(links, {}) == links
    assert visible_links(links, {"CUDA_VISIBLE_DEVICES": "3,1"}) == (("X", "NV4"), ("NV4", "X"))
    assert visible_links(links, {"CUDA_VISIBLE_DEVICES": "GPU-4f1c"}) == ()
    assert visible_links(links[:2], {"CUDA_VISIBLE_DEVICES": "2,3"}) == ()
