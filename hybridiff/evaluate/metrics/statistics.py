"""Summaries of the values of single rows, with confidence intervals by bootstrap."""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

BOOTSTRAP_SAMPLES = 1000
QUANTILES = {"p01": 0.01, "p05": 0.05, "median": 0.5, "p95": 0.95}
_DRAWN = 1 << 22  # row numbers that are in memory at once


def bootstrap(values: ArrayLike, samples: int = BOOTSTRAP_SAMPLES, seed: int = 0) -> tuple[float, float]:
    """95 % confidence interval of a mean by resampling rows (percentile method).

    Args:
        values: (rows,) values of single rows; NaN, which means not computed, is left out.
        samples: number of resamples.
        seed: seed of the resamples.

    Returns:
        Lower and upper bound; NaN where there are no values.
    """
    rows = _known(values)
    if not len(rows):
        return math.nan, math.nan
    random = np.random.default_rng(seed)
    at_once = max(1, _DRAWN // len(rows))
    means = []
    for start in range(0, samples, at_once):
        chosen = random.integers(0, len(rows), (min(at_once, samples - start), len(rows)))
        means.append(rows[chosen].mean(axis=1))
    low, high = _quantiles(np.concatenate(means), (0.025, 0.975))
    return low, high


def summarise(values: ArrayLike, samples: int = BOOTSTRAP_SAMPLES, seed: int = 0) -> dict[str, Any]:
    """Mean, quantiles, extremes and the mean's confidence interval of the values of single rows; NaN is left out.

    Quantiles are values that occur (no interpolation), so that infinite ones are infinite.
    """
    rows = _known(values)
    if not len(rows):
        return {**dict.fromkeys(("mean", *QUANTILES, "min", "max"), math.nan), "ci95": [math.nan, math.nan], "rows": 0}
    low, high = bootstrap(rows, samples=samples, seed=seed)
    summary = {"mean": float(rows.mean()), **dict(zip(QUANTILES, _quantiles(rows, tuple(QUANTILES.values())), strict=True))}
    return {**summary, "min": float(rows.min()), "max": float(rows.max()), "ci95": [low, high], "rows": len(rows)}


def to_json(value: Any) -> Any:
    """A result in numbers that JSON has: infinite ones are the texts ``inf`` and ``-inf``, NaN is null."""
    if isinstance(value, dict):
        return {key: to_json(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(one) for one in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None if math.isnan(value) else str(float(value))
    return value.item() if isinstance(value, np.generic) else value


def _known(values: ArrayLike) -> NDArray[np.float64]:
    rows = np.asarray(values, dtype=np.float64)
    return np.asarray(rows[~np.isnan(rows)])


def _quantiles(values: NDArray[np.float64], shares: tuple[float, ...]) -> list[float]:
    return [float(v) for v in np.quantile(values, shares, method="inverted_cdf")]
