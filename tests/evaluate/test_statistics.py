import json
import math

import numpy as np
import pytest

from hybridiff.evaluate.metrics import statistics
from hybridiff.evaluate.metrics.statistics import bootstrap, summarise, to_json


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        low, high = bootstrap(random.normal(3, 2, 80), samples=200, seed=trial)
        hits += low < 3 < high
    assert 180 <= hits <= 199


def test_the_interval_depends_on_the_seed_alone() -> None:
    values = np.random.default_rng(0).exponential(size=300)
    assert bootstrap(values, seed=1) == bootstrap(values, seed=1) != bootstrap(values, seed=2)


def test_the_interval_does_not_depend_on_how_much_is_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).exponential(size=300)
    whole = bootstrap(values)
    monkeypatch.setattr(statistics, "_DRAWN", 3000)
    assert bootstrap(values) == whole


def test_a_summary() -> None:
    values = [*range(1, 101), math.nan]
    found = summarise(values)
    assert {name: found[name] for name in ("p01", "p05", "median", "p95", "min", "max", "rows")} == {
        "p01": 1, "p05": 5, "median": 50, "p95": 95, "min": 1, "max": 100, "rows": 100,
    }  # fmt: skip
    assert found["mean"] == 50.5 and found["ci95"][0] < 50.5 < found["ci95"][1]


def test_infinite_values_stay_infinite_and_json_is_plain() -> None:
    found = summarise([math.inf] * 9 + [30.0])
    assert found["median"] == found["mean"] == math.inf and found["p05"] == 30.0
    text = json.dumps(to_json({**found, "none": math.nan, "count": np.int64(3)}), allow_nan=False)
    assert json.loads(text)["median"] == "inf" and json.loads(text)["none"] is None and json.loads(text)["count"] == 3


def test_no_values_make_a_summary_of_nothing() -> None:
    found = summarise([math.nan])
    assert found["rows"] == 0 and math.isnan(found["mean"]) and "ci95" in found
