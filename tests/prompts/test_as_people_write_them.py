"""Tables as people and their programs write them: stray spaces, spreadsheets, pandas, names that nearly match."""

from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.prompts.planning import both, in_pieces, plan_of, refusal


def write(path: Path, text: str) -> Path:
    path.write_text(text, newline="")
    return path


@pytest.mark.parametrize(("suffix", "separator"), [(".csv", ","), (".tsv", "\t")])
def test_spaces_around_names_in_a_header_are_stripped(tmp_path: Path, suffix: str, separator: str) -> None:
    names = ["prompt ", " negative_prompt", " seed\u00a0", " my style "]
    text = f"{separator.join(names)}\na red circle{separator}blurry{separator}1{separator} flat \n"
    (sample,) = both(write(tmp_path / f"a{suffix}", text)).shard(0).samples
    assert (sample.prompt, sample.negative_prompt, sample.seed, sample.columns) == (
        "a red circle",
        "blurry",
        1,
        {"my style": " flat "},
    )


NEAR = {
    "Seed": "seed", "SEED": "seed", "Negative_Prompt": "negative_prompt", "negative prompt": "negative_prompt",
    "negative-prompt": "negative_prompt", "NegativePrompt": "negative_prompt", "Key": "key", "Prompt": "prompt",
    "_prompt": "prompt",
}  # fmt: skip


@pytest.mark.parametrize(("column", "meant"), NEAR.items())
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_names_that_nearly_match_are_refused_with_the_name_meant(tmp_path: Path, suffix: str, column: str, meant: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table({"prompt": ["p"], column: ["1"]}), path)
    elif suffix == ".jsonl":
        write(path, f'{{"prompt": "p", "{column}": "1"}}')
    else:
        write(path, f"prompt,{column}\np,1\n".replace(",", "\t" if suffix == ".tsv" else ","))
    assert refusal(path) == f"{path}: has a column {column!r}; allowed: {meant!r}, if that is meant, or another name"


def test_names_are_compared_with_those_that_options_give(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "Caption,caption,ID,Prompt,Key\np,q,1,r,2\n")
    assert "has a column 'Caption'; allowed: 'caption'" in refusal(path, prompt_column="caption", key_column="ID")
    path = write(tmp_path / "b.csv", "caption,ID,Prompt,Key\np,1,r,2\n")
    assert both(path, prompt_column="caption", key_column="ID").user_schema.names == ["Prompt", "Key"]
    assert both(path, prompt_column="Prompt", key_column="Key").user_schema.names == ["caption", "ID"]


def test_columns_that_look_like_settings_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "prompt,steps,Guidance Scale,width,note,num-inference-steps,seed\np,1,2,3,4,5,6\n")
    (notice,) = both(path).notices()
    assert notice == (
        "columns that look like settings are carried as metadata alone: 'steps', 'Guidance Scale', 'width', "
        "'num-inference-steps'; settings come from the options"
    )
    assert both(write(tmp_path / "b.csv", "prompt,note\np,1\n")).notices() == []


TSV = [
    ('"hello world\tA\nhe is 5 foot 10"\tB\na red circle\tC\n', ['"hello world', 'he is 5 foot 10"', "a red circle"]),
    ('"Welcome" on a sign\tA\n', ['"Welcome" on a sign']),
    ('say "hi"\tA\n"a ""quoted"" word"\tB\n', ['say "hi"', 'a "quoted" word']),
    ('"whole"\tA\n""\t\n"half\tB\n', ["whole", "", '"half']),
    ('"tab\there"\tA\n', ["tab\there"]),
    ('"two\nlines"\tA\n"three\r\nmore\n"" lines"\tB\nlast\tC\n', ["two\nlines", 'three\r\nmore\n" lines', "last"]),
    ('"all\tlines\nhave\ttwo\ncells" \tA\n', ['"all', "have", 'cells" ']),
    ('"a\tb\nnot\tso\there\nc"\tA\nlast\tB\n', ["a\tb\nnot\tso\there\nc", "last"]),
    ('6" nails\tA\n"\t\n', ['6" nails', '"']),
    ("\t\nlast\tA\n\n\t\n", ["last"]),
]


@pytest.mark.parametrize(("rows", "prompts"), TSV)
@pytest.mark.parametrize("pieces", [1, None])
def test_quotes_of_tsv_are_text_unless_they_enclose_a_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: str, prompts: list[str], pieces: int | None
) -> None:
    if pieces:
        in_pieces(monkeypatch, pieces)
    plan = both(write(tmp_path / "a.tsv", "prompt\tcat\n" + rows), empty_prompts="allow")
    assert [sample.prompt for sample in plan.shard(0).samples] == prompts


def test_a_quote_of_tsv_that_swallows_lines_without_need_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", 'prompt\tcat\n"open\nb\tB\nc\tC\n')
    assert refusal(path) == f"{path}, line 2: has 1 cells; allowed: 2, as in the header"


@pytest.mark.parametrize(("suffix", "separator"), [(".csv", ","), (".tsv", "\t")])
def test_rows_of_separators_alone_are_skipped(tmp_path: Path, suffix: str, separator: str) -> None:
    lines = ["prompt,style", "a red circle,flat", ",", "a blue square,", ",,,,", ",", ""]
    plan = both(write(tmp_path / f"a{suffix}", "\r\n".join(lines).replace(",", separator)))
    assert [(s.key, s.prompt, s.columns["style"]) for s in plan.shard(0).samples] == [
        ("a-00000000", "a red circle", "flat"),
        ("a-00000001", "a blue square", None),
    ]


@pytest.mark.parametrize(("suffix", "separator"), [(".csv", ","), (".tsv", "\t")])
@pytest.mark.parametrize("pieces", [1, None])
def test_spreadsheets_put_empty_cells_around_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, separator: str, pieces: int | None
) -> None:
    if pieces:
        in_pieces(monkeypatch, pieces)
    before = ["", ",,", " ", '"",""', "prompt,style,,", " "]
    rows = ["a red circle,flat,,", ",,,", "a blue square,", "a star,,,,,"]
    path = write(tmp_path / f"a{suffix}", "\n".join(before + rows).replace(",", separator))
    assert [(s.prompt, s.columns) for s in both(path).shard(0).samples] == [
        ("a red circle", {"style": "flat"}),
        ("a blue square", {"style": None}),
        ("a star", {"style": None}),
    ]
    for row, cells in (("a,b,c", 3), ("a,b,,c", 4), ("a", 1)):
        write(path, "\n".join([*before, *rows, row]).replace(",", separator))
        assert refusal(path) == f"{path}, line 11: has {cells} cells; allowed: 2, as in the header"


def test_the_index_that_pandas_writes_is_carried(tmp_path: Path) -> None:
    plan = both(write(tmp_path / "a.csv", ",prompt\n0,a\n1,b\n"))
    assert [(s.prompt, s.columns) for s in plan.shard(0).samples] == [("a", {"": "0"}), ("b", {"": "1"})]


def test_seeds_of_narrow_floats_are_refused_where_they_are_not_exact(tmp_path: Path) -> None:
    for kind, exact in ((pa.float16(), 2**11), (pa.float32(), 2**24), (pa.float64(), 2**53)):
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"prompt": ["a", "b"], "seed": pa.array([exact, None], kind)}), path)
        assert both(path).shard(0).samples[0].seed == exact
        pq.write_table(pa.table({"prompt": ["a", "b"], "seed": pa.array([1.0, exact * 2.0], kind)}), path)
        assert refusal(path).startswith(f"{path}, row 2: seed is {float(exact * 2)}; allowed: ")


def test_seeds_as_pandas_writes_them(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "prompt,seed\na,1.0\nb,\nc,7\nd,9007199254740993.0\n")
    write(tmp_path / "b.jsonl", '{"prompt": "a", "seed": 1.0}\n{"prompt": "b", "seed": null}\n{"prompt": "c", "seed": NaN}\n')
    pq.write_table(pa.table({"prompt": ["a", "b", "c"], "seed": [1.0, None, float("nan")]}), tmp_path / "c.parquet")
    seeds = {path.name: [s.seed for s in both(path).shard(0).samples] for path in sorted(tmp_path.iterdir())}
    assert [found[0] for found in seeds.values()] == [1, 1, 1]
    assert seeds["a.csv"][2:] == [7, 9007199254740993]
    assert all(seed > 2**53 for seed in (seeds["a.csv"][1], *seeds["b.jsonl"][1:], *seeds["c.parquet"][1:])), "made ones"


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_empty_prompts_by_choice(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table({"prompt": ["a", "", None, " "], "n": [1, 2, 3, 4]}), path)
    elif suffix == ".jsonl":
        write(path, "".join(f'{{"prompt": {one}, "n": 1}}\n' for one in ('"a"', '""', "null", '" "')))
    else:
        write(path, 'prompt,n\na,1\n"",2\n,3\n ,4\n'.replace(",", "\t" if suffix == ".tsv" else ","))
    place = f"{path}, {'row 2' if suffix == '.parquet' else 'line 2' if suffix == '.jsonl' else 'line 3'}"
    assert refusal(path) == f"{place}: prompt is ''; allowed: text, or data.empty_prompts=allow"
    plan = both(path, empty_prompts="allow")
    assert [sample.prompt for sample in plan.shard(0).samples] == ["a", "", "", " "]
    assert plan.notices() == ["3 of 4 prompts are empty"]


DUPLICATES = [
    '{"prompt": "a", "prompt": "b"}',
    '{"prompt": "a", "x": 1, "x": 1}',
    '{"prompt": "a", "o": [{"k": {"y": 1, "y": 2}}]}',
]


@pytest.mark.parametrize("row", DUPLICATES)
def test_names_that_are_twice_in_an_object_are_refused(tmp_path: Path, row: str) -> None:
    path = write(tmp_path / "a.jsonl", f'{{"prompt": "ok"}}\n{row}\n')
    name = {0: "prompt", 1: "x", 2: "y"}[DUPLICATES.index(row)]
    assert refusal(path) == f"{path}, line 2: has the name {name!r} twice; allowed: once"


ELSE = [
    (".csv", "prompt;style\na;b\n", ";"),
    (".csv", '"prompt";"style"\n"a, b";"c"\n', ";"),
    (".csv", "style, kind;prompt\na;b\n", ";"),
    (".csv", "prompt|style\n", "|"),
    (".csv", "prompt\tstyle\n", "\t"),
    (".tsv", "style,prompt\n", ","),
    (".tsv", '"prompt";"style"\n', ";"),
]


@pytest.mark.parametrize(("suffix", "text", "mark"), ELSE)
def test_a_file_that_looks_like_one_of_another_delimiter_is_refused(tmp_path: Path, suffix: str, text: str, mark: str) -> None:
    path = write(tmp_path / f"a{suffix}", text)
    line = refusal(path)
    assert line.startswith(f"{path}: looks as if its cells were separated by {mark!r}: its header is ")
    assert line.endswith(f"allowed: {',' if suffix == '.csv' else chr(9)!r}, or data.delimiter={mark!r}")


@pytest.mark.parametrize("option", [{"delimiter": ";"}, {"encoding": "cp1252"}])
def test_options_of_reading_that_no_table_uses_are_refused(tmp_path: Path, option: dict[str, str]) -> None:
    pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "a.parquet")
    (name, value), *_ = option.items()
    assert refusal(tmp_path / "a.parquet", **option).startswith(f"data.{name} is {value!r}; allowed: ")
    assert plan_of(tmp_path / "a.parquet", write(tmp_path / "b.csv", "prompt\na\n"), **option).rows == 2


def test_seeds_of_other_kinds_and_with_blanks(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "prompt, seed\na, 1\nb, 2.0 \nc, \n")
    seeds = [sample.seed for sample in both(tmp_path / "a.csv").shard(0).samples]
    assert seeds[:2] == [1, 2] and seeds[2] > 2**40
    pq.write_table(pa.table({"prompt": ["a", "b"], "seed": [Decimal("1.0"), None]}), tmp_path / "b.parquet")
    assert both(tmp_path / "b.parquet").shard(0).samples[0].seed == 1
    pq.write_table(pa.table({"prompt": ["a"], "seed": [Decimal("1.5")]}), tmp_path / "b.parquet")
    assert "seed is Decimal('1.5'); allowed" in refusal(tmp_path / "b.parquet")


def test_views_of_text_are_text(tmp_path: Path) -> None:
    columns = {name: pa.array(["a", "b"], pa.string_view()) for name in ("prompt", "key", "negative_prompt", "x")}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    plan = both(tmp_path / "a.parquet")
    first = plan.shard(0).samples[0]
    assert (first.key, first.prompt, first.negative_prompt, first.columns) == ("a", "a", "a", {"x": "a"})


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("mark", [";", "|", "\t", ","])
def test_a_first_line_that_states_the_separator_is_followed(tmp_path: Path, suffix: str, mark: str) -> None:
    for start in (f"sep={mark}\r\n", f'\ufeff"sep={mark}"\n', f"\nSEP={mark}\n\n"):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(f"{start}prompt{mark}note\r\na red circle{mark}A\r\na blue square{mark}B\r\n".encode())
        first, second = both(path).shard(0).samples
        assert (first.prompt, second.prompt, second.columns) == ("a red circle", "a blue square", {"note": "B"})
        assert both(path, delimiter=mark).rows == 2
        stated = 2 if start.startswith("\n") else 1
        line = refusal(path, delimiter="#")
        assert line == f"data.delimiter is '#'; allowed: none or {mark!r}, which {path} states in its line {stated}"


def test_times_of_unknown_zones_are_refused(tmp_path: Path) -> None:
    unknown = pa.timestamp("us", "Mars/Phobos")
    for kind in (unknown, pa.list_(unknown), pa.struct([("t", unknown)]), pa.timestamp("ns", "Mars/Phobos")):
        pq.write_table(pa.table({"prompt": ["p"], "when": pa.nulls(1, kind)}), tmp_path / "a.parquet")
        line = refusal(tmp_path / "a.parquet")
        zone = "'when' holds times of the unknown zone 'Mars/Phobos'"
        assert line == f"{tmp_path / 'a.parquet'}: {zone}; allowed: zones of the time zone database, such as UTC"
    for zone in ("UTC", "Europe/Berlin", "+02:00"):
        pq.write_table(pa.table({"prompt": ["p"], "when": pa.array([1], pa.timestamp("us", zone))}), tmp_path / "a.parquet")
        assert both(tmp_path / "a.parquet").shard(0).samples[0].error is None
