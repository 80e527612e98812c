"""Keys of large tables are compared by hashes."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybridiff.prompts import normalise
from hybridiff.prompts.normalise import hash_keys
from tests.prompts.planning import plan_of, samples_of


@pytest.mark.parametrize("held", [10, 1 << 20])
def test_repeated_hashes_are_found_in_memory_and_on_disk(monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    monkeypatch.setattr(normalise, "HELD_KEYS", held)
    values = np.random.default_rng(0).integers(-(2**63), 2**63, 1000)
    with tempfile.SpooledTemporaryFile(8 * held) as file:
        file.write(values.tobytes() + values[[5, 700]].tobytes())
        assert sorted(normalise.repeated_hashes(file)) == sorted(values[[5, 700]])


def test_hashes_depend_on_the_key_alone() -> None:
    keys = [f"{'ü' * (row % 7)}{row}" for row in range(5_000)] + ["", "a\0", "a"]
    hashes = hash_keys(pa.array(keys))
    assert len(set(hashes.tolist())) == len(keys)
    assert [hash_keys(pa.array([key]))[0] for key in keys[:50]] == hashes[:50].tolist()
    assert hash_keys(pa.array(keys).slice(3, 40)).tolist() == hashes[3:43].tolist()


def test_different_keys_of_one_hash_are_no_duplicates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"prompt": ["p", "q"], "key": ["a", "b"]}), tmp_path / "a.parquet")
    monkeypatch.setattr(normalise, "hash_keys", lambda keys: np.zeros(len(keys), np.int64))
    assert [sample.key for sample in samples_of(plan_of(tmp_path / "a.parquet"))] == ["a", "b"]
