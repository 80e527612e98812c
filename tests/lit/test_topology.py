"""Which GPUs form groups, from what nvidia-smi prints."""

import pytest

from hybridiff.config import UsageError
from hybridiff.lit.topology import Placement, check_gpus, parse_links, place, speed, visible_links

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


def test_cuda_counts_only_visible_gpus() -> None:
    links = parse_links(NVLINK_PAIRS)
    assert visible_links(links, {}) == links
    assert visible_links(links, {"CUDA_VISIBLE_DEVICES": "3,1"}) == (("X", "NV4"), ("NV4", "X"))
    assert visible_links(links, {"CUDA_VISIBLE_DEVICES": "GPU-4f1c"}) == ()
    assert visible_links(links[:2], {"CUDA_VISIBLE_DEVICES": "2,3"}) == ()


@pytest.mark.parametrize(
    ("gpus", "ranks", "group_size", "message"),
    [
        (1, 8, 2, "a node has 8 ranks, and each sees 1 GPUs"),
        (7, 7, 2, "7 GPUs, which do not split into groups of 2; allowed: parallel.group_size 1, or 6 ranks on a node and"),
        (7, 6, 2, "parallel.leave_idle true"),
        (8, 6, 2, "a node has 8 GPUs and 6 ranks; allowed: 8 ranks, or parallel.leave_idle true"),
    ],
)
def test_ranks_that_do_not_fit_are_refused(gpus: int, ranks: int, group_size: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_gpus(gpus, ranks, group_size, leave_idle=False)


@pytest.mark.parametrize(("gpus", "ranks", "group_size", "leave_idle"), [(8, 8, 2, False), (7, 7, 1, False), (7, 6, 2, True)])
def test_ranks_that_fit_are_not(gpus: int, ranks: int, group_size: int, leave_idle: bool) -> None:
    check_gpus(gpus, ranks, group_size, leave_idle)
