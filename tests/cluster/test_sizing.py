"""How large a job is."""

import pytest

from hybridiff.cluster.sizing import Size, describe, parse_walltime, ranks_of_node, size_job, walltime
from hybridiff.config import ParallelConfig
from hybridiff.errors import UsageError


def test_a_known_rate_gives_the_walltime_with_a_margin() -> None:
    # 40 shards of 1000 on 8 groups: 5 shards each, 5000 s at 1 image/s, and 300 s to load
    assert size_job([1000] * 40, 2, 4, 1.0, 86400) == Size(tasks=2, groups=8, estimate_s=5300.0, walltime_s=7200, runs=1)


def test_a_job_longer_than_allowed_runs_several_times() -> None:
    # each run loads again and stops 210 s before its end: of an hour it generates for 3600 - 375 - 210 s at most
    assert size_job([1000] * 40, 2, 4, 1.0, 3600) == Size(tasks=2, groups=8, estimate_s=5900.0, walltime_s=3600, runs=3)
    assert size_job([4824], 1, 1, 2.0, 3600) == Size(tasks=1, groups=1, estimate_s=2712.0, walltime_s=3600, runs=1)
    assert size_job([4826], 1, 1, 2.0, 3600) == Size(tasks=1, groups=1, estimate_s=3013.0, walltime_s=3600, runs=2)


def test_no_more_nodes_than_have_work() -> None:
    assert size_job([1000] * 5, 100, 4, None, 86400) == Size(tasks=2, groups=8, estimate_s=None, walltime_s=86400, runs=1)
    assert size_job([], 100, 4, 1.0, 86400) == Size(tasks=1, groups=4, estimate_s=300.0, walltime_s=900, runs=1)


@pytest.mark.parametrize(("nodes", "rate", "longest_s"), [(0, 1.0, 3600), (1, 0.0, 3600), (1, 1.0, 60)])
def test_nonsense_is_refused(nodes: int, rate: float, longest_s: int) -> None:
    with pytest.raises(UsageError, match="allowed: "):
        size_job([1000], nodes, 1, rate, longest_s)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("90:30", 5430), ("04:00:00", 14400), ("2-12", 216000), ("1-00:30", 88200), ("1-01:01:01", 90061)],
)
def test_walltimes_are_read_in_every_form_of_slurm(text: str, seconds: int) -> None:
    assert parse_walltime(text) == seconds


def test_walltimes_are_written() -> None:
    assert walltime(100 * 3600 + 15 * 60) == "100:15:00"
    for text in ("a", "1:2:3:4", "-5", ""):
        with pytest.raises(UsageError, match="time is "):
            parse_walltime(text)


def test_gpus_that_stay_idle_have_no_rank() -> None:
    idle, pair = ParallelConfig(group_size=2, leave_idle=True), ParallelConfig(group_size=2)
    assert [ranks_of_node(7, 0, idle), ranks_of_node(8, 0, pair), ranks_of_node(0, 4, pair), ranks_of_node(0, 0, pair)] == [
        6,
        8,
        4,
        1,
    ]


def test_the_plan_is_described() -> None:
    size = Size(tasks=1, groups=4, estimate_s=5900.0, walltime_s=3600, runs=3)
    assert describe(size, 40000, (40, 50), 2, 1.234) == [
        "left:     40000 images in 40 of 50 shards",
        "groups:   4 of 2 ranks, on 1 node",
        "estimate: 1 h 38 min, at 1.23 images/s of a group",
        "walltime: 01:00:00, about 3 times, requeued by itself",
    ]
    assert (
        describe(Size(2, 4, None, 3600, 1), 9, (1, 1), 2, None)[2] == "estimate: unknown: give --rate, the images/s of one group"
    )
