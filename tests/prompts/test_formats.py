"""Every format, local and remote, gives the same rows; values keep what the file holds."""

import bz2
import datetime
import gzip
import json
import lzma
import zipfile
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybridiff.prompts.rows import Sample
from tests.prompts.planning import both, in_pieces, refusal

PROMPTS = ["a red circle", "ein grüner Käfer, 緑の円 🟢", 'quoted "star"']


def first_samples(*prompts: str | Path, **options: Any) -> tuple[Sample, ...]:
    return both(*prompts, **options).shard(0).samples


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
    samples = first_samples(url)
    assert [sample.prompt for sample in samples] == PROMPTS
    assert [sample.key for sample in samples] == ["my-prompts-00000000", "my-prompts-00000001", "my-prompts-00000002"]


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_compressed(tmp_path: Path, suffix: str, compress: Any) -> None:
    (tmp_path / f"a.jsonl{suffix}").write_bytes(compress(content(".jsonl")))
    assert first_samples(tmp_path / f"a.jsonl{suffix}")[0].key == "a-00000000"


STREAMS = [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", lambda data: pack_zst(data))]


def pack_zst(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue().to_pybytes())


@pytest.mark.parametrize(("suffix", "compress"), STREAMS)
def test_streams_of_a_compressed_file_are_all_read_or_it_is_refused(tmp_path: Path, suffix: str, compress: Any) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(compress(b"one\n") + compress(b"two\n" * 1000))
    assert both(path).rows == 1001
    damaged = compress(b"one\n") + b"\x01" + compress(b"two\n")[1:]
    for data in (damaged, compress(b"one\n") + b"garbage", compress(b"one\n" * 9)[:-3], b"one\n"):
        path.write_bytes(data)
        assert refusal(path).startswith(f"{path}: cannot be read: ")


@pytest.mark.parametrize("member", ["a.csv", "a.jsonl", "a.txt.gz", "d/a.parquet"])
def test_a_zip_holds_what_its_name_says(tmp_path: Path, member: str) -> None:
    path = tmp_path / "a.txt.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, "prompt\none\n")
    assert refusal(path) == f"{path}: holds {member!r}; allowed: a .txt file, as its name says"


def test_byte_order_mark_and_line_ends(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbfprompt,n\r\none,1\r\n\r\n"two\r\nlines",2\r\n')
    assert [(s.prompt, s.columns) for s in first_samples(tmp_path / "a.csv")] == [
        ("one", {"n": "1"}),
        ("two\r\nlines", {"n": "2"}),
    ]


def test_globs_are_sorted_and_files_follow_in_the_order_given(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.txt"):
        (tmp_path / name).write_text(name)
    assert [s.prompt for s in first_samples(tmp_path / "c.txt", tmp_path / "[ab].txt")] == ["c.txt", "a.txt", "b.txt"]
    with fsspec.open("memory://globbed/x.txt", "w") as file:
        file.write("far")
    assert [s.prompt for s in first_samples("memory://globbed/*.txt")] == ["far"]


def test_a_name_with_glob_characters_is_a_file_if_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("one")
    assert [s.prompt for s in first_samples(tmp_path / "a[1].txt")] == ["one"]


EXACT_CELLS = [
    "1", "1.5", "1.50", "+5", "1e3", "nan", "inf", "007", "-0", " 1", "1 ", "1_0", "0x10", ".5", "True", "null", "é", "e\u0301",
    "9223372036854775808", "12345678901234567890", "1e400", "٣", "\uff11", "\u202e1", "a\u2028b", "🟢", "\u00a05",
]  # fmt: skip


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_cells_are_exact_text_and_empty_ones_null(tmp_path: Path, suffix: str) -> None:
    separator = "," if suffix == ".csv" else "\t"
    rows = [["prompt", "x", "y"], *([f"p{row}", cell, ""] for row, cell in enumerate(EXACT_CELLS)), ["q", '""', "5"]]
    text = "".join(separator.join(row) + "\n" for row in rows)
    (tmp_path / f"a{suffix}").write_text(text, encoding="utf-8", newline="")
    plan = both(tmp_path / f"a{suffix}")
    assert plan.user_schema.types == [pa.string()] * 2
    samples = plan.shard(0).samples
    assert [sample.columns["x"] for sample in samples] == [*EXACT_CELLS, ""]
    assert [sample.columns["y"] for sample in samples] == [None] * len(EXACT_CELLS) + ["5"]


def test_cells_with_a_meaning(tmp_path: Path) -> None:
    header = "prompt,key,negative_prompt,seed\n"
    (tmp_path / "a.csv").write_text(header + '123,007,,5\n1e3,8,"",\n"a, ""b""",9,1.0,7.00\n')
    samples = first_samples(tmp_path / "a.csv")
    assert [(s.key, s.prompt, s.negative_prompt) for s in samples] == [
        ("007", "123", None),
        ("8", "1e3", ""),
        ("9", 'a, "b"', "1.0"),
    ]
    assert (samples[0].seed, samples[2].seed) == (5, 7)


def test_quoted_empty_first_and_last_cells(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('x\tprompt\ty\n""\t"p""\t"""\t\n\tq\t""\n')
    assert [s.columns for s in first_samples(tmp_path / "a.tsv")] == [{"x": "", "y": None}, {"x": None, "y": ""}]


def test_json_scalars_keep_their_type_and_what_has_none_in_common_is_json_text(tmp_path: Path) -> None:
    rows = [
        {"prompt": "o", "int": 1, "float": 1, "flag": True, "none": None, "list": [1, 2], "object": {"a": 1}, "mixed": 1},
        {"prompt": "p", "int": -5, "float": 0.5, "flag": None, "mixed": "x", "big": 2**70, "wide": 2**60, "half": "\ud800"},
        {"prompt": "q", "late": "t", "list": [], "mixed": True, "big": 1, "wide": 0.5},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    plan = both(tmp_path / "a.jsonl")
    types = dict(zip(plan.user_schema.names, map(str, plan.user_schema.types), strict=True))
    assert types == {
        "int": "int64", "float": "double", "flag": "bool", "none": "null", "list": "string", "object": "string",
        "mixed": "string", "big": "string", "wide": "string", "half": "string", "late": "string",
    }  # fmt: skip
    columns = {name: [sample.columns[name] for sample in plan.shard(0).samples] for name in types}
    assert columns == {
        "int": [1, -5, None], "float": [1.0, 0.5, None], "flag": [True, None, None], "none": [None] * 3,
        "list": ["[1, 2]", None, "[]"], "object": ['{"a": 1}', None, None], "mixed": ["1", "x", "true"],
        "big": [None, str(2**70), "1"], "wide": [None, str(2**60), "0.5"], "half": [None, '"\\ud800"', None],
        "late": [None, None, "t"],
    }  # fmt: skip


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_types_do_not_depend_on_the_pieces_in_which_a_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tables: list[Path], rows: int
) -> None:
    values = [1, 0.5, 2**60, None, "x", True, [1], 3]
    for name, used in (("x.jsonl", values[:2]), ("y.jsonl", values[:3]), ("z.jsonl", values)):
        (tmp_path / name).write_text("".join(json.dumps({"prompt": "p", "x": value}) + "\n" for value in used))
    files = [*tables, tmp_path / "x.jsonl", tmp_path / "y.jsonl", tmp_path / "z.jsonl"]
    whole = [both(file) for file in files] + [both(*tables[:6])]
    in_pieces(monkeypatch, rows)
    pieces = [both(file) for file in files] + [both(*tables[:6])]
    assert [plan.content for plan in pieces] == [plan.content for plan in whole]


def test_parquet_types_stay(tmp_path: Path) -> None:
    day = datetime.datetime(2024, 1, 2)
    table = pa.table(
        {
            "prompt": pa.array(["p"]).dictionary_encode(),
            "text": pa.array(["t"]).dictionary_encode(),
            "bytes": [b"\0"],
            "small": pa.array([1], pa.int8()),
            "time": pa.array([day], pa.timestamp("ns")),
            "exact": pa.array([1], pa.timestamp("ns")),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    plan = both(tmp_path / "a.parquet")
    assert plan.user_schema.types == [pa.string(), pa.binary(), pa.int8(), pa.timestamp("us"), pa.string()]
    expected = {"text": "t", "bytes": b"\0", "small": 1, "time": day, "exact": "1970-01-01 00:00:00.000000001"}
    assert plan.shard(0).samples[0].columns == expected


def test_nanoseconds_are_microseconds_or_text(tmp_path: Path) -> None:
    kinds = {"time": pa.time64("ns"), "span": pa.duration("ns"), "zone": pa.timestamp("ns", "UTC")}
    for value, texts in (
        (1500, ["00:00:00.000001500", "1500 ns", "1970-01-01 00:00:00.000001500Z"]),
        (
            2000,
            [
                datetime.time(0, 0, 0, 2),
                datetime.timedelta(microseconds=2),
                datetime.datetime(1970, 1, 1, 0, 0, 0, 2, datetime.UTC),
            ],
        ),
    ):
        columns = {name: pa.array([None, value], kind) for name, kind in kinds.items()}
        nested = pa.array([None, {"t": [value]}], pa.struct([("t", pa.list_(pa.time64("ns")))]))
        pq.write_table(pa.table({"prompt": ["p", "q"], **columns, "nested": nested}), tmp_path / "a.parquet")
        plan = both(tmp_path / "a.parquet")
        units = [getattr(kind, "unit", "text") for kind in plan.user_schema.types]
        assert units == (["text"] * 4 if value == 1500 else ["us", "us", "us", "text"])
        first, second = plan.shard(0).samples
        assert (first.error, second.error) == (None, None) and list(second.columns.values())[:3] == texts


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
    plan = both(tmp_path / "a.parquet")
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
    plan = both(*(tmp_path / name for name in ("a.jsonl", "b.csv", "c.txt", "d.jsonl")))
    assert [sample.columns for sample in plan.shard(0).samples] == [
        {"n": "1", "m": "1", "d": 1.0, "o": '{"x": 1}'},
        {"n": "2", "m": "x", "d": None, "o": None},
        {"n": None, "m": None, "d": None, "o": None},
        {"n": None, "m": None, "d": 1.5, "o": None},
    ]
    assert plan.user_schema.types == [pa.string(), pa.string(), pa.float64(), pa.string()]


def test_names_of_the_corpus_are_stored_with_a_prefix(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"caption": "a", "id": 7, "prompt": "p", "key": "k", "steps": 3}\n')
    (sample,) = first_samples(tmp_path / "a.jsonl", prompt_column="caption", key_column="id")
    expected = {"input_prompt": "p", "input_key": "k", "input_steps": 3}
    assert (sample.key, sample.prompt, sample.columns) == ("7", "a", expected)
