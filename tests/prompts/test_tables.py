"""Every format, local and remote, gives the same rows; values keep what the file holds."""

import bz2
import datetime
import gzip
import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybridiff.config import DataConfig, SamplingConfig
from hybridiff.prompts.plan import Plan, make_plan
from hybridiff.prompts.rows import Sample

PROMPTS = ["a red circle", "ein grüner Käfer, 緑の円 🟢", 'quoted "star"']


def plan_of(*prompts: str | Path, **options: Any) -> Plan:
    return make_plan(DataConfig(prompts=[str(prompt) for prompt in prompts], **options), SamplingConfig(), 1000)


def samples_of(*prompts: str | Path, **options: Any) -> tuple[Sample, ...]:
    return plan_of(*prompts, **options).shard(0).samples


def content(suffix: str) -> bytes:
    """PROMPTS in a format."""
    if suffix == ".parquet":
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.table({"prompt": PROMPTS}), buffer)
        return buffer.getvalue().to_pybytes()
    lines = {
        ".jsonl": [json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in PROMPTS],
        ".csv": ["prompt", *('"' + prompt.replace('"', '""') + '"' for prompt in PROMPTS)],
        ".tsv": ["prompt", *PROMPTS],
        ".txt": [*PROMPTS[:1], "", *PROMPTS[1:]],
    }
    return "\n".join(lines[".jsonl" if suffix == ".ndjson" else suffix]).encode()


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".parquet"])
@pytest.mark.parametrize("remote", [False, True])
def test_formats_agree(tmp_path: Path, suffix: str, remote: bool) -> None:
    url = f"memory://{tmp_path.name}/My Prompts{suffix}" if remote else str(tmp_path / f"My Prompts{suffix}")
    with fsspec.open(url, "wb") as file:
        file.write(content(suffix))
    samples = samples_of(url)
    assert [sample.prompt for sample in samples] == PROMPTS
    assert [sample.key for sample in samples] == ["my-prompts-00000000", "my-prompts-00000001", "my-prompts-00000002"]


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_compressed(tmp_path: Path, suffix: str, compress: Any) -> None:
    (tmp_path / f"a.jsonl{suffix}").write_bytes(compress(content(".jsonl")))
    assert samples_of(tmp_path / f"a.jsonl{suffix}")[0].key == "a-00000000"


def test_byte_order_mark_and_line_ends(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbfprompt,n\r\none,1\r\n\r\n"two\r\nlines",2\r\n')
    assert [(s.prompt, s.columns) for s in samples_of(tmp_path / "a.csv")] == [("one", {"n": 1}), ("two\r\nlines", {"n": 2})]


def test_globs_are_sorted_and_files_follow_in_the_order_given(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.txt"):
        (tmp_path / name).write_text(name)
    assert [s.prompt for s in samples_of(tmp_path / "c.txt", tmp_path / "[ab].txt")] == ["c.txt", "a.txt", "b.txt"]
    with fsspec.open("memory://globbed/x.txt", "w") as file:
        file.write("far")
    assert [s.prompt for s in samples_of("memory://globbed/*.txt")] == ["far"]


def test_a_name_with_glob_characters_is_a_file_if_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("one")
    assert [s.prompt for s in samples_of(tmp_path / "a[1].txt")] == ["one"]


def test_cells_keep_text_and_infer_numbers_only_where_nothing_is_lost(tmp_path: Path) -> None:
    header = "prompt,key,negative_prompt,seed,int,float,padded,long,empty,text\n"
    rows = '123,007,,5,1,1.5,007,12345678901234567890,,a\n1e3,8,"",,-2,2.0,010,2,,""\n"a, ""b""",9,1.0,,,,1,3,,\n'
    (tmp_path / "a.csv").write_text(header + rows)
    samples = samples_of(tmp_path / "a.csv")
    assert [(s.key, s.prompt, s.negative_prompt) for s in samples] == [
        ("007", "123", None),
        ("8", "1e3", ""),
        ("9", 'a, "b"', "1.0"),
    ]
    assert samples[0].seed == 5
    assert [list(s.columns.values()) for s in samples] == [
        [1, 1.5, "007", "12345678901234567890", None, "a"],
        [-2, 2.0, "010", "2", None, ""],
        [None, None, "1", "3", None, None],
    ]


@pytest.mark.parametrize("cells", [["5", "-3", "0"], ["1.5", "-0.0", "1e+20"]])
def test_cells_are_numbers_where_each_is_as_its_number_is_written(tmp_path: Path, cells: list[str]) -> None:
    (tmp_path / "a.csv").write_text("".join(f"{line}\n" for line in ["prompt,x", *(f"p,{cell}" for cell in cells)]))
    values = [sample.columns["x"] for sample in samples_of(tmp_path / "a.csv")]
    assert all(isinstance(value, (int, float)) for value in values)
    assert [str(value) for value in values] == cells


TEXT_CELLS = [
    "1.50", "+5", "1e3", "nan", "NaN", "inf", "-inf", "007", "-0", " 1", "1 ", "1_0", "0x10", "1.", ".5", "1E5", "True", "null",
    "9223372036854775808", "-9223372036854775809", "12345678901234567890", "1e400", "0.1000000000000000055511151231257827",
    "٣", "\uff11", "é", "e\u0301", "\u202e1", "a\u2028b", "🟢", "\u00a05",
]  # fmt: skip


@pytest.mark.parametrize("other", ["1", "1.5", "x", ""])
@pytest.mark.parametrize("cell", TEXT_CELLS)
def test_other_cells_and_their_whole_column_keep_exact_text(tmp_path: Path, cell: str, other: str) -> None:
    (tmp_path / "a.csv").write_text(f"prompt,x\np,{other}\np,{cell}\n", encoding="utf-8", newline="")
    plan = plan_of(tmp_path / "a.csv")
    assert plan.user_schema.field("x").type == pa.string()
    assert [sample.columns["x"] for sample in plan.shard(0).samples] == [other or None, cell]


def test_cells_of_several_files_keep_exact_text(tmp_path: Path) -> None:
    for name, cell in {"a": "1", "b": "1.5", "c": "9007199254740993"}.items():
        (tmp_path / f"{name}.csv").write_text(f"prompt,x,y\np,{cell},{cell}\n")
    (tmp_path / "d.jsonl").write_text('{"prompt": "p", "y": 2.5}\n')
    plan = plan_of(tmp_path / "*.csv", tmp_path / "d.jsonl")
    rows = [list(sample.columns.values()) for sample in plan.shard(0).samples]
    assert rows == [["1", "1"], ["1.5", "1.5"], ["9007199254740993", "9007199254740993"], [None, "2.5"]]


def test_quoted_empty_first_and_last_cells(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('x\tprompt\ty\n""\t"p""\t"""\t\n\tq\t""\n')
    assert [s.columns for s in samples_of(tmp_path / "a.tsv")] == [{"x": "", "y": None}, {"x": None, "y": ""}]


def test_json_columns_keep_their_types_or_become_text(tmp_path: Path) -> None:
    rows = [
        {"prompt": "", "list": [1, 2], "object": {"a": 1}, "mixed": 1, "big": 2**70, "open": {"a": 1}, "none": {}},
        {"prompt": "p", "list": None, "object": {"a": 2}, "mixed": "x", "open": {"b": 2}, "half": "\ud800"},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    first, second = samples_of(tmp_path / "a.jsonl")
    assert first.prompt == ""
    assert first.columns == {
        "list": [1, 2], "object": {"a": 1}, "mixed": "1", "big": str(2**70), "open": '{"a": 1}', "none": "{}", "half": None,
    }  # fmt: skip
    assert second.columns == {
        "list": None, "object": {"a": 2}, "mixed": "x", "big": None, "open": '{"b": 2}', "none": None, "half": '"\\ud800"',
    }  # fmt: skip


def test_parquet_types_stay(tmp_path: Path) -> None:
    day = datetime.datetime(2024, 1, 2)
    table = pa.table(
        {
            "prompt": pa.array(["p"]).dictionary_encode(),
            "bytes": [b"\0"],
            "small": pa.array([1], pa.int8()),
            "time": pa.array([day], pa.timestamp("ns")),
            "exact": pa.array([1], pa.timestamp("ns")),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    plan = plan_of(tmp_path / "a.parquet")
    assert plan.user_schema.types == [pa.binary(), pa.int8(), pa.timestamp("us"), pa.string()]
    expected = {"bytes": b"\0", "small": 1, "time": day, "exact": "1970-01-01 00:00:00.000000001"}
    assert plan.shard(0).samples[0].columns == expected


def test_parquet_types_that_readers_do_not_have_become_text(tmp_path: Path) -> None:
    maps = pa.map_(pa.string(), pa.int8())
    columns = {
        "map": pa.array([[("ü", 1), ("b", None)], None], maps),
        "maps": pa.array([[], [[("a", 1)]]], pa.list_(maps)),
        "inside": pa.array([{"m": [("a", 1)]}, {"m": None}], pa.struct({"m": maps})),
        "view": pa.array([[1], []], pa.list_view(pa.int8())),
        "fine": pa.array([{"m": [1]}, None], pa.struct({"m": pa.large_list(pa.int8())})),
    }
    pq.write_table(pa.table({"prompt": ["p", "q"], **columns}), tmp_path / "a.parquet")
    plan = plan_of(tmp_path / "a.parquet")
    assert plan.user_schema.types == [pa.string()] * 4 + [columns["fine"].type]
    first, second = plan.shard(0).samples
    assert first.columns == {
        "map": '[["\\u00fc", 1], ["b", null]]', "maps": "[]", "inside": '{"m": [["a", 1]]}', "view": "[1]", "fine": {"m": [1]},
    }  # fmt: skip
    assert second.columns == {"map": None, "maps": '[[["a", 1]]]', "inside": '{"m": null}', "view": "[]", "fine": None}


def test_columns_of_several_files_are_united(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "n": 1, "m": 1, "d": 1, "o": {"x": 1}}\n')
    (tmp_path / "b.csv").write_text("prompt,n,m\nb,2,x\n")
    (tmp_path / "c.txt").write_text("c")
    (tmp_path / "d.jsonl").write_text('{"prompt": "d", "d": 1.5}\n')
    plan = plan_of(*(tmp_path / name for name in ("a.jsonl", "b.csv", "c.txt", "d.jsonl")))
    assert [sample.columns for sample in plan.shard(0).samples] == [
        {"n": 1, "m": "1", "d": 1.0, "o": {"x": 1}},
        {"n": 2, "m": "x", "d": None, "o": None},
        {"n": None, "m": None, "d": None, "o": None},
        {"n": None, "m": None, "d": 1.5, "o": None},
    ]
    assert plan.user_schema.types == [pa.int64(), pa.string(), pa.float64(), pa.struct({"x": pa.int64()})]


def test_names_of_the_corpus_are_stored_with_a_prefix(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"caption": "a", "id": 7, "prompt": "p", "key": "k", "steps": 3}\n')
    (sample,) = samples_of(tmp_path / "a.jsonl", prompt_column="caption", key_column="id")
    expected = {"input_prompt": "p", "input_key": "k", "input_steps": 3}
    assert (sample.key, sample.prompt, sample.columns) == ("7", "a", expected)
