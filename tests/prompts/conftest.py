"""A table of each kind."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

FILES: dict[str, str | bytes] = {
    "a.txt": "one\n\ntwo\r\nthree",
    "b.csv": 'prompt,key,negative_prompt,seed,int,float,padded,none,mixed\n"p, 1",007,,5,1,1.5,007,,1\n1e3,8,"",,-2,2.0,010,,x\n',
    "c.tsv": "prompt\tint\nü\t4611686018427387904\n",
    "d.jsonl.gz": gzip.compress(
        b'{"prompt": "j", "list": [1], "obj": {"a": 1}, "mixed": 1, "big": 1180591620717411303424, "steps": 3}\n'
        b'{"prompt": "k", "half": "\\ud800", "obj": {"a": 2}, "mixed": null, "int": 1.5}\n'
    ),
    "e.ndjson": '{"prompt": "l", "obj": {"b": 2}}\n',
}


@pytest.fixture
def tables(tmp_path: Path) -> list[Path]:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    columns = {
        "prompt": pa.array(["p", "q"]).dictionary_encode(),
        "key": pa.array([7, 9], pa.uint8()),
        "seed": pa.array([None, 4], pa.int16()),
        "negative_prompt": pa.nulls(2),
        "time": pa.array([1_000, 2_000], pa.timestamp("ns")),
        "exact": pa.array([1, 2], pa.timestamp("ns")),
        "int": pa.array([1, 2], pa.int8()),
        "deep": [[{"x": 1}], None],
        "map": pa.array([[("ü", 1), ("b", None)], None], pa.map_(pa.string(), pa.int8())),
        "maps": pa.array([[], [[("a", 1)]]], pa.list_(pa.map_(pa.string(), pa.int8()))),
        "view": pa.array([[1], []], pa.list_view(pa.int8())),
    }
    pq.write_table(pa.table(columns), tmp_path / "f.parquet")
    (tmp_path / "g.parquet.gz").write_bytes(gzip.compress((tmp_path / "f.parquet").read_bytes()))
    return sorted(tmp_path.iterdir())
