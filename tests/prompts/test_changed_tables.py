"""A table that changed since a corpus was started is described in words: rows added, the first key that changed, renamed keys."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybridiff.corpus import Corpus
from hybridiff.corpus.record import RunRecord
from hybridiff.errors import UsageError
from hybridiff.prompts import content
from hybridiff.prompts.plan import Plan
from tests.prompts.planning import both, plan_of

Rows = list[dict[str, Any]]


def plan_for(tmp_path: Path, rows: Rows, name: str = "a") -> Plan:
    path = tmp_path / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return both(path)


def change(tmp_path: Path, before: Rows, after: Rows, name: str = "a") -> str:
    """How the change is described, by what a run record holds, which is JSON."""
    summary = json.loads(json.dumps(plan_for(tmp_path, before).summary))
    said = plan_for(tmp_path, after, name).describe_change(summary)
    prefix = "its prompt table changed: "
    assert said.startswith(prefix)
    return said.removeprefix(prefix)


def rows_of(count: int, **values: Any) -> Rows:
    return [{"prompt": f"p{row}", "key": f"k{row}", "n": row, **values} for row in range(count)]


def made(rows: Rows) -> Rows:
    return [{name: value for name, value in row.items() if name != "key"} for row in rows]


RENAMED = "(where keys are made from its file's name, a renamed file renames them)"


def test_rows_added_and_removed(tmp_path: Path) -> None:
    assert change(tmp_path, rows_of(2), rows_of(3)) == "1 row added after its 2"
    assert change(tmp_path, rows_of(2), rows_of(12)) == "10 rows added after its 2"
    assert change(tmp_path, rows_of(12), rows_of(11)) == "its last 1 row removed"
    assert change(tmp_path, rows_of(12), rows_of(2)) == "its last 10 rows removed"
    assert change(tmp_path, made(rows_of(5)), made(rows_of(8))) == "3 rows added after its 5"


@pytest.mark.parametrize("field", ["prompt", "negative_prompt", "seed", "n"])
def test_the_first_row_that_changed_is_named_by_its_key(tmp_path: Path, field: str) -> None:
    before, after = rows_of(9, seed=1, negative_prompt="b"), rows_of(9, seed=1, negative_prompt="b")
    for row in (4, 6, 7):
        after[row][field] = 99 if field in ("seed", "n") else "other"
    assert change(tmp_path, before, after) == "the first that changed is row 5, key 'k4'"
    assert change(tmp_path, before, [*after, {"prompt": "p"} | {"key": "new"}]).endswith("row 5, key 'k4'")


def test_rows_inserted_and_removed_in_the_middle(tmp_path: Path) -> None:
    new = {"prompt": "new", "key": "new", "n": 5}
    rows = rows_of(6)
    inserted = change(tmp_path, rows, [*rows[:2], new, *rows[2:]])
    assert inserted == "it has 7 rows, and had 6; the first that changed is row 3, key 'new'"
    assert change(tmp_path, rows, rows[:2] + rows[3:]) == "it has 5 rows, and had 6; the first that changed is row 3, key 'k3'"
    assert change(tmp_path, rows, rows[::-1]).startswith("the first that changed is row 1, key 'k5'")


def test_keys_alone(tmp_path: Path) -> None:
    after = rows_of(5)
    after[3]["key"] = "other"
    assert change(tmp_path, rows_of(5), after) == "the first that has another key is row 4, key 'other'"


def test_a_renamed_file_renames_its_keys(tmp_path: Path) -> None:
    before = made(rows_of(3))
    renamed = f"its rows have other keys, of which the first was 'a-00000000' and is 'q-00000000' {RENAMED}"
    assert change(tmp_path, before, before, "q") == renamed
    assert change(tmp_path, before, made(rows_of(4)), "q") == f"1 row added after its 3; {renamed}"
    after = made(rows_of(3))
    after[1]["n"] = 7
    assert change(tmp_path, before, after, "q") == f"the first that changed is row 2, key 'q-00000001'; {renamed}"


def test_columns(tmp_path: Path) -> None:
    before = rows_of(3)
    assert change(tmp_path, before, rows_of(3, x=1)) == "it has a new column 'x'"
    assert change(tmp_path, rows_of(3, x=1), before) == "its column 'x' is gone"
    assert change(tmp_path, before, [row | {"n": str(row["n"])} for row in before]) == "its column 'n' is string, and was int64"
    assert change(tmp_path, before, rows_of(4, x=1)) == "it has a new column 'x'; it has 4 rows, and had 3"


@pytest.mark.parametrize("count", [3000, 5000])
def test_beyond_single_rows_a_range_is_named_and_additions_are_exact(tmp_path: Path, count: int) -> None:
    def table(rows: int, changed: int | None = None) -> Plan:
        prompts = ["other" if row == changed else f"p{row}" for row in range(rows)]
        pq.write_table(pa.table({"prompt": prompts}), tmp_path / "a.parquet")
        return plan_of(tmp_path / "a.parquet")

    summary = table(count).summary
    added = f"its prompt table changed: 7 rows added after its {count}"
    assert table(count + 7).describe_change(summary) == added
    assert table(count + 7, changed=count + 2).describe_change(summary) == added
    for changed in (2050, count - 1):
        said = table(count + 7, changed).describe_change(summary)
        start = next(start for start in blocks(count) if content.block_end(start) > changed)
        end = min(content.block_end(start), count)
        where = f"among rows {start + 1} to {end}, keys 'a-{start:08d}' to 'a-{end - 1:08d}'"
        where = f"row {end}, key 'a-{start:08d}'" if end == start + 1 else where
        assert said.endswith(f"it has {count + 7} rows, and had {count}; the first that changed is {where}")


def blocks(rows: int) -> list[int]:
    starts = [0]
    while content.block_end(starts[-1]) < rows:
        starts.append(content.block_end(starts[-1]))
    return starts


def test_blocks_grow_so_that_a_record_stays_small() -> None:
    assert [content.block_end(start) - start for start in (0, 2047, 2048, 4095, 4096, 8192)] == [1, 1, 4, 4, 8, 16]
    assert len(blocks(100_000_000)) < 12_000


def test_a_corpus_refuses_a_changed_table_in_words(tmp_path: Path) -> None:
    corpus = Corpus(str(tmp_path / "out"))

    def record(rows: Rows) -> RunRecord:
        plan = plan_for(tmp_path, rows)
        known = {"rows": plan.rows, "shards": plan.shards, "content": plan.content, "table": plan.summary}
        return RunRecord({"a": 1}, known, describe_change=plan.describe_change)

    corpus.start_run(record(rows_of(2)))
    corpus.publish("commits/00000.json", b"{}")  # a corpus without a shard takes any other run
    corpus.start_run(record(rows_of(2)))
    with pytest.raises(UsageError) as refused:
        corpus.start_run(record(rows_of(3)))
    assert str(refused.value).endswith("of another configuration: its prompt table changed: 1 row added after its 2")
