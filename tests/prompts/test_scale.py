"""Tables of millions of rows: memory of the plan, of any shard and of a long run.

``pytest -s tests/prompts/test_scale.py`` prints times too, of which tests assert ratios of CPU seconds alone.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from hybridiff.corpus import Corpus
from hybridiff.corpus.layout import marker_name

MEASURED = """
import json, sys, time
from hybridiff.config import DataConfig, SamplingConfig
from hybridiff.corpus import Corpus
from hybridiff.prompts.plan import make_plan
def peak_mb():  # ru_maxrss would begin with the parent's
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
def read_bytes():  # by this process, whether from a disk or the page cache
    return next(int(line.split()[1]) for line in open("/proc/self/io") if line.startswith("rchar"))
before, read_before = peak_mb(), read_bytes()
started, started_cpu = time.perf_counter(), time.process_time()
copies = []
plan = make_plan(
    DataConfig([sys.argv[1]]), SamplingConfig(), 1000, Corpus(sys.argv[2]), "lead", before_copying=lambda: copies.append(1)
)
plan_s, plan_cpu_s, plan_bytes = time.perf_counter() - started, time.process_time() - started_cpu, read_bytes() - read_before
shard_s = []
for index in [0, plan.shards // 3, plan.shards // 2, plan.shards - 1]:
    started = time.perf_counter()
    keys = {sample.key for sample in plan.shard(index).samples}
    shard_s.append(time.perf_counter() - started)
    assert len(keys) == 1000
print(json.dumps({
    "rows": plan.rows, "content": plan.content, "plan_s": plan_s, "plan_cpu_s": plan_cpu_s, "plan_bytes": plan_bytes,
    "worst_shard_s": max(shard_s), "peak_mb": peak_mb(), "import_mb": before, "copies": len(copies)
}))
"""


def write_table(path: Path, rows: int, group_rows: int = 1_000_000) -> None:
    """Prompts of about 85 characters, unordered keys and two more columns."""
    random = np.random.default_rng(0)
    words = pa.array(
        [f"{word}{number}" for number in range(500) for word in ("red", "circle", "photo", "blue", "house", "of the")]
    )
    writer = None
    for first in range(0, rows, group_rows):
        numbers = np.arange(first, min(first + group_rows, rows))
        count = len(numbers)
        parts = [words.take(pa.array(random.integers(0, len(words), count))) for _ in range(10)]
        columns = {
            "key": pc.binary_join_element_wise("laion", pa.array(numbers * 7919 % rows).cast(pa.string()), "-"),
            "prompt": pc.binary_join_element_wise(*parts, " "),
            "score": pa.array(random.random(count)),
            "width": pa.array(random.integers(256, 2048, count)),
        }
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def measure(path: Path) -> list[dict[str, Any]]:
    """Figures of a fresh process that plans a table, and of another that finds it made."""
    found = []
    for _ in range(2):
        arguments = [sys.executable, "-c", MEASURED, str(path), str(path.parent / "out")]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    print(json.dumps(found))
    assert found[0]["content"] == found[1]["content"]
    assert [one["copies"] for one in found] == [1, 0], "the second reads what the first has written"
    first, again = found
    assert again["plan_bytes"] <= path.stat().st_size / 50, "of which it needs the footer alone"
    assert again["plan_cpu_s"] <= first["plan_cpu_s"] / 10
    return found


def test_a_million_rows_of_parquet(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", 1_000_000, group_rows=250_000)
    first, again = measure(tmp_path / "a.parquet")
    assert first["rows"] == again["rows"] == 1_000_000
    assert first["peak_mb"] <= first["import_mb"] + 500
    assert again["peak_mb"] <= again["import_mb"] + 100


def test_text_is_normalised_in_little_memory(tmp_path: Path) -> None:
    line = json.dumps({"prompt": "a red circle on a blue background " * 20, "n": 1}) + "\n"
    (tmp_path / "a.jsonl").write_text(line * 70_000)  # 50 MB
    first, again = measure(tmp_path / "a.jsonl")
    assert first["rows"] == 70_000
    assert first["peak_mb"] <= first["import_mb"] + 250
    assert again["peak_mb"] <= again["import_mb"] + 100


@pytest.mark.slow
@pytest.mark.timeout(1100)
def test_ten_million_rows_of_parquet(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", 10_000_000)
    first, _ = measure(tmp_path / "a.parquet")
    assert first["rows"] == 10_000_000
    assert first["peak_mb"] <= 1000


class CountingFiles(MemoryFileSystem):
    protocol = "counting"
    cachable = False
    store: dict[str, Any] = {}  # noqa: RUF012 - as in its parent
    pseudo_dirs = [""]  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        self.asked.append(f"ls {path}")
        return super().ls(path, detail, **kwargs)

    def info(self, path: str, **kwargs: Any) -> Any:
        self.asked.append(f"info {path}")
        return super().info(path, **kwargs)

    def _open(self, path: str, *args: Any, **kwargs: Any) -> Any:
        self.asked.append(f"open {path}")
        return super()._open(path, *args, **kwargs)


def test_one_listing_finds_the_pending_of_100_000_shards() -> None:
    corpus = Corpus("memory://markers")
    files = CountingFiles()
    corpus.fs = files
    done = set(range(0, 100_000, 2))
    empty = MemoryFile()
    files.store.update({corpus.path(marker_name(index)): empty for index in done})
    assert corpus.committed() == done
    assert files.asked == [f"ls {corpus.path('commits')}"]
