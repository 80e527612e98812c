"""Large tables: one Parquet file whose row groups match shards; its rows are those of a table in memory."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybridiff.config import DataConfig, SamplingConfig
from hybridiff.corpus import Corpus
from hybridiff.errors import StorageError
from hybridiff.prompts import content, table
from hybridiff.prompts.plan import Plan, make_plan
from tests.prompts.planning import DISK, MEMORY, both, in_pieces, plan_of, samples_of


@pytest.mark.parametrize("rows", [1, 7, None])
def test_tables_in_memory_and_on_disk_are_the_same(tables: list[Path], monkeypatch: pytest.MonkeyPatch, rows: int | None) -> None:
    if rows:
        in_pieces(monkeypatch, rows)
    monkeypatch.setattr(table, "GROUP_ROWS", 4)
    for files in [[one] for one in tables] + [tables[:6], tables[::-1][1:]]:
        for images in (1, 3):
            both(*files, images=images, size=2)


def write_shared(tmp_path: Path, rows: int, size: int, images: int = 1, text: str = "") -> tuple[Plan, pq.ParquetFile]:
    """A plan of a large table, and the file that it is in."""
    (tmp_path / "a.txt").write_text("".join(f"prompt {row}{text}\n" for row in range(rows)))
    corpus = Corpus(str(tmp_path / "out"))
    sampling = SamplingConfig(images_per_prompt=images)
    plan = make_plan(DataConfig(str(tmp_path / "a.txt")), sampling, size, corpus, "lead", DISK)
    (path,) = (tmp_path / "out/tables").iterdir()
    return plan, pq.ParquetFile(path)


@pytest.mark.parametrize(
    ("size", "images", "group_rows"), [(7, 1, 98), (100, 1, 100), (100, 3, 68), (5000, 1, 1000), (10, 5, 100)]
)
def test_a_shard_lies_in_one_or_two_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, images: int, group_rows: int
) -> None:
    monkeypatch.setattr(table, "GROUP_ROWS", 100)
    plan, file = write_shared(tmp_path, 1000, size, images)
    groups = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    assert set(groups[:-1]) <= {group_rows} and groups[0] == group_rows and sum(groups) == 1000
    read: list[list[int]] = []
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_groups",
        lambda self, groups, real=pq.ParquetFile.read_row_groups: (read.append(groups), real(self, groups))[1],
    )
    prompts = [sample.prompt for sample in samples_of(plan)]
    assert prompts == [f"prompt {row}" for row in range(1000) for _ in range(images)]
    assert len(read) == plan.shards and max(map(len, read)) <= 2


def test_row_groups_of_long_rows_are_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "GROUP_BYTES", 100_000)
    plan, file = write_shared(tmp_path, 1000, 500, text="x" * 1000)
    assert file.metadata.num_row_groups >= 10
    assert [sample.prompt[:10] for sample in plan.shard(1).samples[:2]] == ["prompt 500", "prompt 501"]


def test_large_is_decided_by_rows_and_their_bytes_not_by_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = pa.DictionaryArray.from_arrays(
        pa.array(np.arange(400_000) // 100_000, pa.int32()), [f"a circle {i}" for i in range(4)]
    )
    pq.write_table(pa.table({"prompt": words.cast(pa.string())}), tmp_path / "few.parquet", compression="zstd")
    assert (tmp_path / "few.parquet").stat().st_size < 20_000
    corpus = Corpus(str(tmp_path / "out"))
    plan = make_plan(DataConfig(str(tmp_path / "few.parquet")), SamplingConfig(), 1000, corpus, "lead")
    assert len(corpus.names("tables")) == 1 and plan.shard(399).samples[999].prompt == "a circle 3"
    (tmp_path / "small.txt").write_text("p\n" * 10)
    make_plan(DataConfig(str(tmp_path / "small.txt")), SamplingConfig(), 1000, corpus, "lead")
    monkeypatch.setattr(table, "MEMORY_ROWS", 9)
    make_plan(DataConfig(str(tmp_path / "small.txt")), SamplingConfig(), 1000, corpus, "lead")
    assert len(corpus.names("tables")) == 2


def test_a_table_that_is_gone_or_damaged_in_mid_run_is_storage_trouble(tmp_path: Path) -> None:
    plan, _ = write_shared(tmp_path, 100, 10)
    (path,) = (tmp_path / "out/tables").iterdir()
    path.write_bytes(path.read_bytes()[:100] + b"\0" * 100)
    with pytest.raises(StorageError, match="can't be read there"):
        plan.shard(3)
    path.unlink()
    with pytest.raises(StorageError, match="was removed"):
        plan.shard(3)


NESTED = pa.array([[{"x": "a"}], None, [], [{"x": None}, None]] * 3, pa.list_(pa.struct([("x", pa.string())])))
DIGESTED = [
    pa.array([1, None, 3, 4] * 3, pa.int16()),
    pa.array([True, None, False, True] * 3),
    pa.array(["a", None, "", "ü"] * 3, pa.large_string()),
    pa.array([b"a", None, b"", b"c"] * 3),
    pa.array([0.5, None, float("nan"), -0.0] * 3),
    pa.array([1, None, 3, 4] * 3, pa.timestamp("us")),
    pa.array([[1, 2], None, [3, 4], [5, 6]] * 3, pa.list_(pa.int8(), 2)),
    pa.nulls(12),
    NESTED,
]


@pytest.mark.parametrize("column", DIGESTED, ids=lambda column: str(column.type))
@pytest.mark.parametrize("single", [0, 4, 100])
def test_content_depends_on_the_rows_not_on_how_they_lie_in_memory(
    column: pa.Array, single: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "SINGLE_ROWS", single or 1)
    monkeypatch.setattr(content, "BLOCKS", 1)
    rows = pa.table({"key": [f"k{row}" for row in range(12)], "x": column})
    shifted = pa.concat_tables([rows.slice(5), rows]).combine_chunks().slice(7)
    digests = set()
    for table_, cuts in ((rows, [0, 12]), (rows, [0, 1, 2, 12]), (rows, [0, 5, 11, 12]), (shifted, [0, 3, 12])):
        digest = content.ContentDigest()
        for start, stop in pairwise(cuts):
            digest.add(table_.slice(start, stop - start))
        digests.add((digest.finish(rows.schema), bytes(digest.marks["values"])))
    assert len(digests) == 1
    if column.null_count < 12:
        other = content.ContentDigest()
        other.add(rows.set_column(1, "x", rows["x"].take(pa.array([1, *range(1, 12)]))))
        assert other.finish(rows.schema) not in {found for found, _ in digests}


def test_content_is_free_of_the_place_the_format_and_the_compression_of_a_file(tmp_path: Path) -> None:
    import gzip

    (tmp_path / "moved").mkdir()
    (tmp_path / "a.jsonl").write_text('{"prompt": "p", "x": "1"}\n{"prompt": "q", "x": null}\n')
    (tmp_path / "a.csv").write_text("prompt,x\np,1\nq,\n")
    (tmp_path / "moved/a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    pq.write_table(pa.table({"x": ["1", None], "prompt": ["p", "q"]}), tmp_path / "a.parquet")
    files = [tmp_path / name for name in ("a.jsonl", "a.csv", "moved/a.jsonl.gz", "a.parquet")]
    assert len({both(file).content for file in files}) == 1
    assert len({plan_of(file, held_bytes=held).content for file in files for held in (MEMORY, DISK)}) == 1
