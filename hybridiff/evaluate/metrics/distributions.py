"""Distances between two sets of feature vectors: Fréchet distance, KID, precision / recall / density / coverage, and CMMD.

Features are read in blocks, as often as a distance needs, so that memory does not grow with the number of rows. All arithmetic
is in float64.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hybridiff.errors import UsageError, amount

Features = NDArray[np.floating]  # (rows, width)
Blocks = Callable[[], Iterable[Features]]  # each call yields all rows again, in the same order
BLOCK_ROWS = 2048  # rows of a set that are in memory at once; a block of distances has the square of it
GATHERED_ROWS = 16_384  # rows of the subsets of KID that are in memory at once
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
PRDC_NEIGHBOURS = 5
_LEAST_SAMPLES, _OPERATIONS = 20, 2e12  # resamples of a Fréchet distance: as many as these multiplications allow, 20 at least
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0

DEFINITIONS = {
    "fid": "Fréchet distance |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of two Gaussians, unbiased covariances, in float64",
    "kid": "squared maximum mean discrepancy with the kernel (x.y / width + 1)^3, unbiased, mean over random subsets",
    "prdc": "improved precision and recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797), by k nearest neighbours",
    "cmmd": "1000 times the squared maximum mean discrepancy, biased, of unit vectors with the kernel exp(-|x - y|^2 / (2 10^2))",
}


class Frechet:
    """Mean and covariance of features, and the Fréchet distance of two of them (FID, FD-DINOv2).

    Parts are merged by Chan's update, which does not cancel digits where means are far from zero.

    Attributes:
        rows: number of rows seen.
        mean: (width,) float64; empty before the first rows.
        scatter: (width, width) float64, sum over rows of the outer product of their difference from the mean.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.mean: NDArray[np.float64] = np.zeros(0)
        self.scatter: NDArray[np.float64] = np.zeros((0, 0))

    def update(self, features: Features) -> None:
        """Adds rows, (rows, width)."""
        part = Frechet()
        values = np.asarray(features, dtype=np.float64)
        if len(values):
            part.rows, part.mean = len(values), values.mean(axis=0)
            centred = values - part.mean
            part.scatter = centred.T @ centred
            self.merge(part)

    def merge(self, other: "Frechet") -> None:
        """Adds the rows that another one has seen."""
        if not self.rows or not other.rows:
            if other.rows:
                self.rows, self.mean, self.scatter = other.rows, other.mean.copy(), other.scatter.copy()
            return
        total, difference = self.rows + other.rows, other.mean - self.mean
        self.scatter += other.scatter + np.outer(difference, difference) * (self.rows * other.rows / total)
        self.mean = self.mean + difference * (other.rows / total)
        self.rows = total

    def compute(self, other: "Frechet") -> float:
        """The distance.

        Raises:
            UsageError: one of the two has seen fewer than two rows.
        """
        for part in (self, other):
            _require_rows(part.rows, 2, "a Fréchet distance")
        one, two = (part.scatter / (part.rows - 1) for part in (self, other))
        # tr (S1 S2)^(1/2) is the sum of singular values of S1^(1/2) S2^(1/2); eigenvalues of S1 S2 would lose half of the digits
        shared = torch.linalg.svdvals(torch.from_numpy(_square_root(one) @ _square_root(two))).sum().item()
        distance = float(np.square(self.mean - other.mean).sum() + np.trace(one) + np.trace(two) - 2 * shared)
        return max(0.0, distance)


def frechet(blocks: Blocks) -> Frechet:
    """Mean and covariance of all rows."""
    statistics = Frechet()
    for block in _chunks(blocks):
        statistics.update(block)
    return statistics


def frechet_interval(x: Frechet, y: Blocks, samples: int, seed: int = 0) -> tuple[float, int]:
    """Half the width of the 95 % interval of a Fréchet distance, by bootstrap over the rows of the corpus.

    The distance of resampled rows is biased upwards, as there are fewer different ones: so the interval is 1.96 standard
    deviations of it around the distance of all rows. With wide features a resample takes seconds, and there are fewer of them.

    Args:
        x: mean and covariance of the reference.
        y: features of the corpus.
        samples: number of resamples, if time allows.
        seed: seed of the resamples.

    Returns:
        Half the width, and the number of resamples.
    """
    rows, width = count_rows(y), len(x.mean)
    samples = min(samples, max(_LEAST_SAMPLES, int(_OPERATIONS / (rows * width**2 + 6 * width**3))))
    root, one = _square_root(x.scatter / (x.rows - 1)), np.trace(x.scatter) / (x.rows - 1)
    random, values = np.random.default_rng(seed), []
    for _ in range(samples):
        weights = np.bincount(random.integers(0, rows, rows), minlength=rows).astype(np.float64)
        mean, covariance = _weighted(y, weights)
        shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ covariance @ root), 0)).sum()
        values.append(np.square(x.mean - mean).sum() + one + np.trace(covariance) - 2 * shared)
    return 1.96 * float(np.std(values, ddof=1)) if samples > 1 else math.nan, samples


@dataclass(frozen=True)
class Kid:
    """KID: mean and standard deviation over the subsets."""

    mean: float
    std: float


def kid(x: Blocks, y: Blocks, subsets: int = KID_SUBSETS, subset_size: int = KID_SUBSET_SIZE, seed: int = 0) -> Kid:
    """Kernel distance (arXiv 1801.01401), as torchmetrics has it: the same subsets as after ``torch.manual_seed(seed)``.

    Args:
        x: features of the reference.
        y: features of the corpus.
        subsets: number of random subsets.
        subset_size: rows of a subset; all rows where there are fewer.
        seed: seed of the subsets.

    Raises:
        UsageError: one of the two has fewer than two rows.
    """
    counts = count_rows(x), count_rows(y)
    size = min(subset_size, *counts)
    _require_rows(size, 2, "KID")
    generator = torch.Generator().manual_seed(seed)
    chosen = [[torch.randperm(count, generator=generator)[:size].numpy() for count in counts] for _ in range(subsets)]
    at_once = max(1, GATHERED_ROWS // size)
    values: list[float] = []
    for start in range(0, subsets, at_once):
        part = chosen[start : start + at_once]
        rows = [_gather(blocks, np.concatenate([pair[side] for pair in part])) for side, blocks in enumerate((x, y))]
        values += [_polynomial_mmd(*(side[i * size : (i + 1) * size] for side in rows)) for i in range(len(part))]
    return Kid(float(np.mean(values)), float(np.std(values)))


def prdc(x: Blocks, y: Blocks, k: int = PRDC_NEIGHBOURS) -> dict[str, NDArray[np.float64]]:
    """Precision, recall, density and coverage of each row, by the distance to the k-th neighbour.

    Precision and density are of the corpus's rows, recall and coverage of the reference's.

    Args:
        x: features of the reference.
        y: features of the corpus.
        k: number of neighbours, the row itself not counted.

    Raises:
        UsageError: one of the two has ``k`` rows or fewer.
    """
    for blocks in (x, y):
        _require_rows(count_rows(blocks), k + 1, f"prdc with k={k}")
    radii = _radii(x, k), _radii(y, k)
    inside, covered = [], np.zeros(len(radii[0]), dtype=bool)
    found = np.zeros(len(radii[0]), dtype=bool)
    for y_at, y_chunk in _numbered(y):
        within = np.zeros(len(y_chunk))
        for x_at, x_chunk in _numbered(x):
            distances = squared_distances(y_chunk, x_chunk)
            near = distances < radii[0][x_at]
            within += near.sum(axis=1)
            covered[x_at] |= near.any(axis=0)
            found[x_at] |= (distances < radii[1][y_at, None]).any(axis=0)
        inside.append(within)
    counts = np.concatenate(inside)
    rows = {"precision": counts > 0, "recall": found, "density": counts / k, "coverage": covered}
    return {name: values.astype(np.float64) for name, values in rows.items()}


def cmmd(x: Blocks, y: Blocks) -> float:
    """CMMD (arXiv 2401.09603) of image embeddings, which are scaled to unit length here.

    Raises:
        UsageError: one of the two has no rows.
    """
    for blocks in (x, y):
        _require_rows(count_rows(blocks), 1, "CMMD")
    return CMMD_SCALE * (_mean_kernel(x, x) + _mean_kernel(y, y) - 2 * _mean_kernel(x, y))


def count_rows(blocks: Blocks) -> int:
    """Number of rows of all blocks."""
    return sum(len(block) for block in blocks())


def squared_distances(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared Euclidean distances, (rows of x, rows of y); zero where the difference is below the rounding error."""
    squares = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1)
    distances = squares - 2 * (x @ y.T)
    distances[distances < 1e-13 * squares] = 0.0
    return np.asarray(distances)


def _require_rows(given: int, least: int, purpose: str) -> None:
    if given < least:
        raise UsageError(f"{purpose} has {amount(given, 'row')} of one side; allowed: {least} or more")


def _weighted(blocks: Blocks, weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and covariance of rows that count ``weights`` times."""
    centre = next(_chunks(blocks)).mean(axis=0)  # near the mean, so that no digits cancel
    total, mean, scatter = weights.sum(), np.zeros(len(centre)), np.zeros((len(centre),) * 2)
    for at, chunk in _numbered(blocks):
        difference, weighted = chunk - centre, weights[at, None]
        mean += (difference * weighted).sum(axis=0) / total
        scatter += (difference * weighted).T @ difference
    return centre + mean, (scatter - total * np.outer(mean, mean)) / (total - 1)


def _square_root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Square root of a positive semi-definite matrix, up to a rotation that singular values do not see."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T)


def _chunks(blocks: Blocks, rows: int = BLOCK_ROWS) -> Iterator[NDArray[np.float64]]:
    """All rows in chunks of ``rows``, whatever the blocks' sizes: sums do not depend on these."""
    waiting: list[Features] = []
    count = 0
    for block in blocks():
        while len(block):
            part = block[: rows - count]
            waiting.append(part)
            count, block = count + len(part), block[len(part) :]
            if count == rows:
                yield np.concatenate(waiting).astype(np.float64, copy=False)
                waiting, count = [], 0
    if waiting:
        yield np.concatenate(waiting).astype(np.float64, copy=False)


def _numbered(blocks: Blocks) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    start = 0
    for chunk in _chunks(blocks):
        yield slice(start, start + len(chunk)), chunk
        start += len(chunk)


def _gather(blocks: Blocks, indices: NDArray[np.int64]) -> NDArray[np.float64]:
    """The rows of these indices, in their order, in one pass."""
    order = np.argsort(indices, kind="stable")
    wanted = indices[order]
    rows: NDArray[np.float64] | None = None
    start = 0
    for block in blocks():
        first, last = np.searchsorted(wanted, (start, start + len(block)))
        if rows is None:
            rows = np.empty((len(indices), block.shape[1]))
        rows[order[first:last]] = block[wanted[first:last] - start]
        start += len(block)
    assert rows is not None
    return rows


def _polynomial_mmd(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    size, width = x.shape
    xx, yy, xy = ((a @ b.T / width + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)
    return float(within / (size * (size - 1)) - 2 * xy.sum() / size**2)


def _radii(blocks: Blocks, k: int) -> NDArray[np.float64]:
    """Squared distance of each row to its k-th neighbour."""
    radii = []
    for _, chunk in _numbered(blocks):
        nearest = np.full((len(chunk), k + 1), math.inf)
        for _, other in _numbered(blocks):
            both = np.concatenate([nearest, squared_distances(chunk, other)], axis=1)
            nearest = np.partition(both, k, axis=1)[:, : k + 1]
        radii.append(nearest.max(axis=1))
    return np.concatenate(radii)


def _mean_kernel(x: Blocks, y: Blocks) -> float:
    total, rows = 0.0, [0, 0]
    for _, one in _numbered(x):
        unit, rows[0], rows[1] = _unit(one), rows[0] + len(one), 0
        for _, two in _numbered(y):
            rows[1] += len(two)
            total += np.exp((unit @ _unit(two).T - 1) / CMMD_SIGMA**2).sum()
    return float(total / (rows[0] * rows[1]))


def _unit(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12))
