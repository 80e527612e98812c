"""Whether ranks fit the GPUs of a node, and which of them they take."""

from typing import Any

import pytest

from hybridiff.cluster.gpus import check_gpus, choose_gpus
from hybridiff.cluster.launch import Launch, count_devices
from hybridiff.errors import UsageError

NVLINK_PAIRS = (("X", "SYS", "NV4", "PHB"), ("SYS", "X", "PHB", "NV4"), ("NV4", "PHB", "X", "SYS"), ("PHB", "NV4", "SYS", "X"))


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


@pytest.mark.parametrize(
    ("given", "devices"), [("auto", 4), (None, 4), ("-1", 4), ("2", 2), (2, 2), ("0,1", "0,1"), ([0, 1], [0, 1])]
)
def test_gpus_are_chosen_however_their_number_is_given(given: Any, devices: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert count_devices(given, Launch(0, 4, 4)) == devices
    monkeypatch.setattr("hybridiff.cluster.gpus.ask_links", lambda: NVLINK_PAIRS)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    placement = choose_gpus({"devices": devices}, 2, {})
    expected = {2: (0, 2), 4: (0, 2, 1, 3)}
    assert (placement and placement.gpus) == (expected[devices] if isinstance(devices, int) else None)


def test_gpus_whose_links_are_not_known_keep_their_order_and_the_log_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybridiff.cluster.gpus.ask_links", lambda: NVLINK_PAIRS)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    placement = choose_gpus({"devices": 2}, 2, {"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2,GPU-3"})
    assert placement is not None and placement.describe() == "0+1; links unknown, in their own order; idle: 2"


@pytest.mark.parametrize(("given", "gpus", "group_size"), [({}, 0, 2), ({}, 1, 2), ({}, 4, 1), ({"accelerator": "cpu"}, 4, 2)])
def test_gpus_are_asked_only_where_there_is_a_choice(
    given: dict[str, str], gpus: int, group_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hybridiff.cluster.gpus.ask_links", lambda: pytest.fail("it was asked"))
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert choose_gpus({"devices": 2, **given}, group_size, {}) is None
