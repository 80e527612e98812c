"""Tables too large for memory give the same rows, and refuse the same mistakes, as small ones."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybridiff.config import DataConfig, SamplingConfig
from hybridiff.corpus import Corpus
from hybridiff.errors import UsageError
from hybridiff.prompts import making
from hybridiff.prompts.plan import make_plan
from tests.prompts.planning import STREAMED, in_pieces, plan_of, refusal, samples_of
from tests.prompts.test_errors import TEXT_MISTAKES


def assert_same(*prompts: str | Path, **options: Any) -> None:
    held, streamed = plan_of(*prompts, held_bytes=1 << 30, **options), plan_of(*prompts, **options)
    assert samples_of(streamed) == samples_of(held)
    assert streamed.user_schema.equals(held.user_schema)


@pytest.fixture(params=[1, None], ids=["row by row", "at once"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read in pieces of this many rows."""
    if request.param is not None:
        in_pieces(monkeypatch, request.param)


@pytest.mark.usefixtures("pieces")
def test_each_table_gives_the_same_rows(tables: list[Path]) -> None:
    for path in tables:
        assert_same(path)
        assert_same(path, images=3)


@pytest.mark.usefixtures("pieces")
def test_tables_together_give_the_same_rows(tables: list[Path]) -> None:
    assert_same(*tables[:6])
    assert_same(*tables[::-1][1:])


def test_cells_of_several_tables_keep_exact_text(tmp_path: Path) -> None:
    for name, cell in {"a": "1", "b": "1.5", "c": "1.50"}.items():
        (tmp_path / f"{name}.csv").write_text(f"prompt,x\np,{cell}\n")
    assert [sample.columns for sample in samples_of(plan_of(tmp_path / "[ab].csv"))] == [{"x": "1"}, {"x": "1.5"}]
    assert_same(tmp_path / "[ab].csv")
    assert_same(tmp_path / "?.csv")


@pytest.mark.parametrize(("name", "text", "expected"), TEXT_MISTAKES)
def test_mistakes_are_refused_alike(tmp_path: Path, name: str, text: str, expected: str) -> None:
    (tmp_path / name).write_text(text)
    source = "Could not open Parquet input source '<Buffer>': "
    assert refusal(tmp_path / name) == refusal(tmp_path / name, held_bytes=1 << 30).replace(source, "")


PARQUET_MISTAKES: list[dict[str, Any]] = [
    {"prompt": ["p", None]},
    {"prompt": [1, 2]},
    {"prompt": [b"p", b"q"]},
    {"text": ["p", "q"]},
    {"prompt": ["p", "q"], "key": ["a", "b.c"]},
    {"prompt": ["p", "q"], "key": ["a", "b\x85"]},
    {"prompt": ["p", "q"], "key": ["a", "k" * 201]},
    {"prompt": ["p", "q"], "key": ["a", ""]},
    {"prompt": ["p", "q"], "key": ["a", None]},
    {"prompt": ["p", "q"], "key": [1.0, 2.0]},
    {"prompt": ["p", "q"], "key": [True, False]},
    {"prompt": ["p", "q"], "key": ["a", "a"]},
    {"prompt": ["p", "q"], "key": [3, 3]},
    {"prompt": ["p", "q"], "seed": [0, -1]},
    {"prompt": ["p", "q"], "seed": pa.array([0, 2**63], pa.uint64())},
    {"prompt": ["p", "q"], "seed": [0.0, 1.0]},
    {"prompt": ["p", "q"], "negative_prompt": [None, 1]},
    {"prompt": ["p", "q"], "steps": [1, 2], "input_steps": [1, 2]},
    {"prompt": pa.array([], pa.string())},
]


@pytest.mark.parametrize("columns", PARQUET_MISTAKES)
@pytest.mark.parametrize("statistics", [True, False])
def test_mistakes_in_parquet_are_refused_alike(tmp_path: Path, columns: dict[str, Any], statistics: bool) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", write_statistics=statistics)
    assert refusal(tmp_path / "a.parquet") == refusal(tmp_path / "a.parquet", held_bytes=1 << 30)


def test_duplicates_are_found_between_files_and_made_keys(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("p\n\nq\n")
    pq.write_table(pa.table({"prompt": ["r", "s"], "key": ["x", "a-00000001"]}), tmp_path / "b.parquet")
    expected = f"{tmp_path}/b.parquet, row 2: key 'a-00000001' is also at {tmp_path}/a.txt, line 3; allowed: unique keys"
    assert refusal(tmp_path / "a.txt", tmp_path / "b.parquet") == expected


def test_types_are_those_of_all_pieces_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_pieces(monkeypatch, 10)
    rows: list[dict[str, Any]] = [{"prompt": f"p{row}", "int": row, "float": row, "big": 2**60, "flag": 1} for row in range(95)]
    rows[-1] |= {"float": 0.5, "big": 0.5, "flag": True, "late": {"x": 1}}
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    plan = plan_of(path)
    assert dict(zip(plan.user_schema.names, plan.user_schema.types, strict=True)) == {
        "int": pa.int64(),
        "float": pa.float64(),
        "big": pa.string(),
        "flag": pa.string(),
        "late": pa.struct({"x": pa.int64()}),
    }
    last = plan.shard(0).samples[-1]
    assert last.columns == {"int": 94, "float": 0.5, "big": "0.5", "flag": "true", "late": {"x": 1}}
    assert last.key == "a-00000094"
    assert_same(path)
    rows[-1]["key"] = "k"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert refusal(path) == refusal(path, held_bytes=1 << 30) == f"{path}, line 1: key is None; allowed: text or an integer"


def test_bytes_that_are_not_utf8_are_placed_in_the_whole_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + b"line\n" * 10_000 + b"\xff\n")
    assert refusal(tmp_path / "a.txt").endswith("can't decode byte 0xff in position 50003: invalid start byte")


def test_files_with_huge_row_groups_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"prompt": [f"p{row}" for row in range(100)], "n": range(100)}), tmp_path / "a.parquet")
    monkeypatch.setattr(making, "GROUP_ROWS", 10)
    corpus = Corpus(str(tmp_path / "out"))
    plan = make_plan(DataConfig([str(tmp_path / "a.parquet")]), SamplingConfig(), 1000, corpus, "lead", STREAMED)
    assert len(list((tmp_path / "out/tables").glob("*-0.parquet"))) == 1
    monkeypatch.undo()
    assert samples_of(plan) == samples_of(plan_of(tmp_path / "a.parquet"))


def content(path: Path, **options: Any) -> str:
    return plan_of(path, **options).content


def test_content_follows_bytes_and_what_is_read_of_them(tmp_path: Path) -> None:
    path, other, moved = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "moved"
    path.write_text('{"prompt": "p", "text": "q", "id": 1}\n')
    other.write_text(path.read_text())
    (moved).mkdir()
    (moved / "a.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert content(moved / "a.jsonl.gz") == content(path)
    assert content(other, key_column="id") == content(path, key_column="id")
    contents = [content(path), content(other), content(path, prompt_column="text"), content(path, key_column="id")]
    path.write_text('{"prompt": "P", "text": "q", "id": 1}\n')
    assert len({*contents, content(path)}) == 5


def test_a_file_that_changed_since_it_was_planned_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": ["p", "q"]}), path)
    plan = plan_of(path)
    pq.write_table(pa.table({"prompt": ["p"]}), path)
    with pytest.raises(UsageError, match=r"a\.parquet: has 1 rows; allowed: 2, as when planned$"):
        plan.shard(0)
