"""Whether ranks fit the GPUs of a node, and which of them they take."""

import sys
from itertools import combinations, permutations
from types import SimpleNamespace
from typing import Any

import pytest

from hybridiff.cluster.gpus import GpuOrder, check_gpus, choose_gpus, is_connected, nvlink_pairs, order_gpus
from hybridiff.cluster.launch import Launch, count_devices
from hybridiff.errors import ServiceError, UsageError

CROSSED = frozenset({(0, 2), (1, 3)})  # NVLink bridges between every second GPU


class FakeNvml(SimpleNamespace):
    """pynvml, as far as it is used, for GPUs that NVLink connects in some pairs."""

    NVML_P2P_CAPS_INDEX_NVLINK, NVML_P2P_STATUS_OK = 2, 0

    class NVMLError(Exception):
        pass

    class NVMLError_LibraryNotFound(NVMLError):
        pass

    class NVMLError_DriverNotLoaded(NVMLError):
        pass

    class NVMLError_NotSupported(NVMLError):
        pass

    def __init__(self, uuids: list[str], pairs: set[tuple[str, str]], fails: dict[str, Exception] | None = None) -> None:
        super().__init__(uuids=uuids, pairs=pairs, fails=fails or {}, open=0)

    def _call(self, name: str) -> None:
        if name in self.fails:
            raise self.fails[name]

    def nvmlInit(self) -> None:
        self._call("nvmlInit")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self._call("nvmlDeviceGetHandleByUUID")
        if uuid not in self.uuids:
            raise self.NVMLError(f"{uuid} not found")
        return uuid

    def nvmlDeviceGetP2PStatus(self, first: str, second: str, kind: int) -> int:
        self._call("nvmlDeviceGetP2PStatus")
        assert kind == self.NVML_P2P_CAPS_INDEX_NVLINK
        return self.NVML_P2P_STATUS_OK if {(first, second), (second, first)} & self.pairs else 3


def install(monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml | None, uuids: list[str]) -> None:
    """Makes this a node of such GPUs, with or without pynvml."""
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(uuids))
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: SimpleNamespace(uuid=uuids[index]))


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
def test_pairs_lie_on_nvlink_however_the_number_of_gpus_is_given(
    given: Any, devices: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA's order is another than NVML's, and torch's UUIDs lack the prefix."""
    assert count_devices(given, Launch(0, 4, 4)) == devices
    nvml = FakeNvml(["GPU-d", "GPU-a", "GPU-b", "GPU-c"], {("GPU-a", "GPU-c"), ("GPU-b", "GPU-d")})
    install(monkeypatch, nvml, ["a", "b", "c", "d"])
    order = choose_gpus({"devices": devices}, 2)
    expected = {2: "0+2 (NVLink); idle: 1, 3", 4: "0+2 (NVLink), 1+3 (NVLink)"}
    assert (order and order.describe()) == (expected[devices] if isinstance(devices, int) else None)
    assert nvml.open == 0


@pytest.mark.parametrize(
    ("nvml", "reason"),
    [
        (None, "no pynvml (pip install 'hybridiff[nvlink]')"),
        (FakeNvml([], set(), {"nvmlInit": FakeNvml.NVMLError_LibraryNotFound("no libnvidia-ml")}), "no libnvidia-ml"),
    ],
)
def test_without_nvml_gpus_keep_their_order_and_the_log_says_so(
    nvml: FakeNvml | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, nvml, ["a", "b", "c"])
    order = choose_gpus({"devices": 2}, 2)
    assert order is not None
    assert order.describe() == f"0+1; order kept, as links between GPUs are unknown: {reason}; idle: 2"


@pytest.mark.parametrize("call", ["nvmlInit", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetP2PStatus"])
def test_gpus_that_do_not_answer_are_an_error_and_not_an_order_of_their_own(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(["GPU-a", "GPU-b"], set(), {call: FakeNvml.NVMLError("GPU is lost")})
    install(monkeypatch, nvml, ["a", "b"])
    with pytest.raises(ServiceError, match=r"NVML: GPU is lost; use .* trainer.devices as a list"):
        choose_gpus({"devices": 2}, 2)
    assert nvml.open == 0


def test_gpus_that_have_no_nvlink_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = {"nvmlDeviceGetP2PStatus": FakeNvml.NVMLError_NotSupported("not supported")}
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(["GPU-a", "MIG-b"], set(), lacking))
    assert nvlink_pairs(["a", "MIG-b"]) == (frozenset(), "")


@pytest.mark.parametrize(("given", "gpus", "group_size"), [({}, 0, 2), ({}, 1, 2), ({}, 4, 1), ({"accelerator": "cpu"}, 4, 2)])
def test_gpus_are_asked_only_where_there_is_a_choice(
    given: dict[str, str], gpus: int, group_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hybridiff.cluster.gpus.nvlink_pairs", lambda uuids: pytest.fail("it was asked"))
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert choose_gpus({"devices": 2, **given}, group_size) is None


def test_a_gpu_without_nvlink_stays_idle() -> None:
    assert order_gpus(3, 2, 2, frozenset({(1, 2)})) == (1, 2)
    order = GpuOrder((1, 2), 2, frozenset({(1, 2)}), idle=(0,))
    assert order.describe() == "1+2 (NVLink); idle: 0"


def test_groups_of_four_and_of_one() -> None:
    halves = frozenset(pair for pair in combinations(range(8), 2) if pair[0] % 2 == pair[1] % 2)
    assert order_gpus(8, 8, 4, halves) == (0, 2, 4, 6, 1, 3, 5, 7)
    assert order_gpus(4, 4, 1, CROSSED) == (0, 1, 2, 3)


@pytest.mark.parametrize(("ranks", "group_size"), [(16, 2), (14, 2), (16, 4), (12, 4)])
def test_sixteen_gpus_that_are_all_connected_or_not_at_all_keep_their_order(ranks: int, group_size: int) -> None:
    everything = frozenset(combinations(range(16), 2))
    for nvlink in (everything, frozenset[tuple[int, int]]()):
        assert order_gpus(16, ranks, group_size, nvlink) == tuple(range(ranks))


@pytest.mark.parametrize("group_size", [2, 4])
def test_no_order_connects_more_groups(group_size: int) -> None:
    pairs = list(combinations(range(6), 2))
    for seed in range(40):
        nvlink = frozenset(pair for index, pair in enumerate(pairs) if (seed * 2654435761 >> index) & 1)

        def connected(order: tuple[int, ...], nvlink: frozenset[tuple[int, int]] = nvlink) -> int:
            return sum(is_connected(order[start : start + group_size], nvlink) for start in range(0, len(order), group_size))

        best = max(connected(order[:4]) for order in permutations(range(6)))
        assert connected(order_gpus(6, 4, group_size, nvlink)) == best
