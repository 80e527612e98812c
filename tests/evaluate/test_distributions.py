"""FID and KID: torchmetrics' values on the same features; PRDC and CMMD: a plain NumPy reference; memory stays bounded."""

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from hybridiff.errors import UsageError
from hybridiff.evaluate.metrics import distributions
from hybridiff.evaluate.metrics.distributions import Blocks, Frechet, cmmd, frechet, kid, prdc, squared_distances

WIDTH = 12


def features(rows: int, shift: float = 0.0, seed: int = 0, width: int = WIDTH) -> NDArray[np.float32]:
    random = np.random.default_rng((seed, rows))
    mixed = random.normal(size=(rows, width)) @ np.random.default_rng(1).normal(size=(width, width))
    return (mixed + shift).astype(np.float32)


def blocks(rows: NDArray[np.float32], size: int = 97) -> Blocks:
    return lambda: (rows[i : i + size] for i in range(0, len(rows), size))


class Identity(nn.Module):
    num_features = WIDTH

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.fixture
def x() -> NDArray[np.float32]:
    return features(400)


@pytest.fixture
def y() -> NDArray[np.float32]:
    return features(300, shift=0.5, seed=1)


def test_fid_is_that_of_torchmetrics(x: NDArray[np.float32], y: NDArray[np.float32]) -> None:
    theirs = FrechetInceptionDistance(feature=Identity())
    theirs.update(torch.from_numpy(x).double(), real=True)
    theirs.update(torch.from_numpy(y).double(), real=False)
    assert frechet(blocks(y)).compute(frechet(blocks(x))) == pytest.approx(theirs.compute().item(), rel=1e-4)


def test_fid_of_equal_sets_is_zero_also_where_covariances_are_singular() -> None:
    for rows, width in ((400, WIDTH), (20, 200)):
        same = features(rows, 1000.0, width=width)
        assert frechet(blocks(same)).compute(frechet(blocks(same, 13))) < 1e-6


def test_statistics_are_merged(x: NDArray[np.float32]) -> None:
    parts = [Frechet() for _ in range(4)]
    for part, rows in zip(parts, np.split(x + 1e6, [0, 150, 151]), strict=True):
        part.update(rows)
    whole = parts[0]
    for part in parts[1:]:
        whole.merge(part)
    assert whole.rows == 400
    exact = (x + 1e6).astype(np.float64)
    assert whole.mean == pytest.approx(exact.mean(0), rel=1e-12)
    assert whole.scatter / 399 == pytest.approx(np.cov(exact.T), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("subset_size", [300, 50])
@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`")
def test_kid_is_that_of_torchmetrics(x: NDArray[np.float32], y: NDArray[np.float32], subset_size: int) -> None:
    theirs = KernelInceptionDistance(feature=Identity(), subsets=7, subset_size=subset_size)
    theirs.update(torch.from_numpy(x).double(), real=True)
    theirs.update(torch.from_numpy(y).double(), real=False)
    torch.manual_seed(3)
    mean, std = (value.item() for value in theirs.compute())
    found = kid(blocks(x), blocks(y), subsets=7, subset_size=subset_size, seed=3)
    assert (found.mean, found.std) == (pytest.approx(mean, rel=1e-4), pytest.approx(std, rel=1e-4))


def test_kid_does_not_depend_on_how_many_subsets_are_in_memory(
    x: NDArray[np.float32], y: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = kid(blocks(x), blocks(y), 9, 40)
    monkeypatch.setattr(distributions, "GATHERED_ROWS", 80)
    assert kid(blocks(x), blocks(y, 11), 9, 40) == whole


def plain_prdc(x: NDArray[np.float64], y: NDArray[np.float64], k: int) -> tuple[float, float, float, float]:
    def distances(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.linalg.norm(a[:, None] - b[None], axis=-1)

    radii_x, radii_y = (np.sort(distances(s, s), axis=1)[:, k] for s in (x, y))
    between = distances(x, y)
    near_x, near_y = between < radii_x[:, None], between < radii_y[None]
    coverage = (between.min(axis=1) < radii_x).mean()
    return near_x.any(0).mean(), near_y.any(1).mean(), near_x.sum(0).mean() / k, coverage


@pytest.mark.parametrize("chunk", [64, 2048])
def test_prdc_is_that_of_plain_numpy(
    x: NDArray[np.float32], y: NDArray[np.float32], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributions._chunks, "__defaults__", (chunk,))
    found = prdc(blocks(x), blocks(y), 5)
    expected = plain_prdc(x.astype(np.float64), y.astype(np.float64), 5)
    means = [found[name].mean() for name in ("precision", "recall", "density", "coverage")]
    assert means == pytest.approx(expected, rel=1e-12)
    assert 0 < means[0] < 1 and means[0] != means[1] != means[3]


def test_prdc_knows_which_side_is_the_reference(x: NDArray[np.float32]) -> None:
    few = np.repeat(x[:20], 20, axis=0) + np.random.default_rng(0).normal(0, 1e-3, (400, WIDTH)).astype(np.float32)
    found = prdc(blocks(x), blocks(few))
    assert found["precision"].mean() > 0.9 and found["recall"].mean() < 0.2 and found["coverage"].mean() < 0.5


def test_equal_rows_have_no_distance() -> None:
    rows = features(50, shift=1e4).astype(np.float64)
    distances = squared_distances(rows, rows)
    assert (distances.diagonal() == 0).all() and (distances + np.eye(50) > 0).all()


def test_cmmd_is_that_of_plain_numpy(x: NDArray[np.float32], y: NDArray[np.float32]) -> None:
    a, b = (s.astype(np.float64) / np.linalg.norm(s.astype(np.float64), axis=1, keepdims=True) for s in (x, y))

    def kernel(one: NDArray[np.float64], two: NDArray[np.float64]) -> float:
        return float(np.exp(-np.square(one[:, None] - two[None]).sum(-1) / (2 * 10**2)).mean())

    expected = 1000 * (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b))
    assert cmmd(blocks(x), blocks(y)) == pytest.approx(expected, rel=1e-8) and expected > 0.1
    assert abs(cmmd(blocks(x), blocks(x, 10))) < 1e-9


def test_too_few_rows_are_refused() -> None:
    one, many = blocks(features(1)), blocks(features(20))
    with pytest.raises(UsageError, match="Fréchet distance has 1 row"):
        frechet(many).compute(frechet(one))
    with pytest.raises(UsageError, match="KID has 1 row"):
        kid(many, one)
    with pytest.raises(UsageError, match="prdc with k=5 has 1 row of one side; allowed: 6 or more"):
        prdc(one, many)
    with pytest.raises(UsageError, match="CMMD has 0 rows"):
        cmmd(many, lambda: [])


class Counted:
    """Blocks of 50,000 rows that are made when they are read."""

    rows, size, width = 50_000, 500, 64

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self) -> Iterator[NDArray[np.float32]]:
        for start in range(0, self.rows, self.size):
            yield np.random.default_rng((self.seed, start)).normal(self.seed / 10, 1, (self.size, self.width)).astype(np.float32)


def test_fifty_thousand_rows_take_bounded_memory() -> None:
    one, two = Counted(0), Counted(1)
    whole = one.rows * one.width * 4
    tracemalloc.start()
    try:
        assert frechet(one).compute(frechet(two)) == pytest.approx(64 * 0.01, rel=0.15)
        assert kid(one, two, subsets=20, subset_size=100).mean > 0
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.6 * whole


def test_distances_of_all_rows_are_never_in_memory_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributions._chunks, "__defaults__", (128,))
    x, y = features(1500), features(1500, shift=0.5, seed=1)
    tracemalloc.start()
    try:
        assert 0 < prdc(blocks(x), blocks(y))["coverage"].mean() < 1 and cmmd(blocks(x), blocks(y)) > 0
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.3 * len(x) * len(y) * 8
