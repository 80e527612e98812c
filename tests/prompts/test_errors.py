"""Every mistake in a prompt table is refused in one line that names the file, the row and what is allowed."""

import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.prompts.planning import in_pieces, plan_of, refusal, samples_of

NO_PROMPT = "prompt is None; allowed: text in Unicode, not null, or data.empty_prompts=allow"
KEY_RULE = "allowed: 1 to 200 bytes in UTF-8 without / \\ . and control characters (WebDataset ends a key at its first dot)"
SEED_RULE = "allowed: an integer from 0 to 2**63 - 1, or null"
OK = '{"prompt": "p"}\n'
TEXT_MISTAKES = [
    ("a.jsonl", OK + '\n{"prompt": }', ", line 3: is not JSON: Expecting value at character 12; allowed: a JSON object a line"),
    ("a.jsonl", '[\n{"prompt": "p"}\n]', ", line 1: is not JSON: Expecting value at character 3; allowed: a JSON object a line"),
    (
        "a.jsonl",
        '{"prompt": "p", "n": ' + "9" * 5000 + "}",
        ", line 1: holds a number that is too long; allowed: at most 4300 digits",
    ),
    ("a.jsonl", OK + "[1]", ", line 2: holds a list; allowed: a JSON object a line"),
    ("a.jsonl", OK + "[" * 100_000, ", line 2: nests deeply; allowed: 500 levels"),
    ("a.jsonl", '{"text": "p", "n": 1}', ": has no column 'prompt'; columns there: 'text', 'n'; see data.prompt_column"),
    ("a.csv", "text,n\n", ": has no column 'prompt'; columns there: 'text', 'n'; see data.prompt_column"),
    ("a.jsonl", OK + '{"prompt": null}', ", line 2: " + NO_PROMPT),
    ("a.jsonl", OK + '{"text": "p"}', ", line 2: " + NO_PROMPT),
    ("a.jsonl", OK + '{"prompt": 5}', ", line 2: prompt is 5; allowed: text in Unicode, not null"),
    ("a.jsonl", '{"prompt": "\\ud800"}', ", line 1: prompt is '\\ud800'; allowed: text in Unicode, not null"),
    ("a.jsonl", '{"prompt": "p", "negative_prompt": 1}', ", line 1: negative_prompt is 1; allowed: text in Unicode or null"),
    ("a.jsonl", OK + '{"prompt": "p", "seed": -1}', f", line 2: seed is -1; {SEED_RULE}"),
    ("a.jsonl", OK + '{"prompt": "p", "seed": 9223372036854775808}', f", line 2: seed is 9223372036854775808; {SEED_RULE}"),
    ("a.jsonl", '{"prompt": "p", "seed": true}', f", line 1: seed is True; {SEED_RULE}"),
    ("a.jsonl", '{"prompt": "p", "seed": "1"}', f", line 1: seed is '1'; {SEED_RULE}"),
    ("a.jsonl", '{"prompt": "p", "key": 1.5}', ", line 1: key is 1.5; allowed: text or an integer"),
    ("a.jsonl", '{"prompt": "p", "key": null}', ", line 1: key is None; allowed: text or an integer"),
    ("a.jsonl", '{"prompt": "p", "\\ud800": 1}', ": has a column '\\ud800'; allowed: names that UTF-8 can hold"),
    (
        "a.jsonl",
        '{"prompt": "p", "steps": 1, "input_steps": 2}',
        ": has a column 'input_steps', as which 'steps' is stored; allowed: one of the two",
    ),
    ("a.jsonl", "\n\n", ": no prompts; allowed: one row or more"),
    ("a.csv", "prompt\n", ": no prompts; allowed: one row or more"),
    ("a.csv", "", ": no prompts; allowed: one row or more"),
    ("a.txt", " \n", ": no prompts; allowed: one row or more"),
    ("a.csv", 'prompt,n\n"a\nb",1\nc\n', ", line 4: has 1 cells; allowed: 2, as in the header"),
    ("a.csv", "prompt,n\na,1,2\n", ", line 2: has 3 cells; allowed: 2, as in the header"),
    ("a.csv", 'prompt,n\na,1\n"b,1\nc,2\n', ", line 3: is not a row of cells: unexpected end of data"),
    ("a.csv", "紅" * 20_000 + "\na", f": has no column 'prompt'; columns there: '{'紅' * 56}..."),
    ("a.csv", "prompt,n,n\na,1,2\n", ": column names are ['prompt', 'n', 'n']; allowed: each once"),
    ("a.csv", "prompt,n\na,1\n,2\n", ", line 3: " + NO_PROMPT),
    ("a.tsv", "prompt\tseed\na\t1.5\n", f", line 2: seed is '1.5'; {SEED_RULE}"),
    ("a.csv", "prompt,seed\na,1e3\n", f", line 2: seed is '1e3'; {SEED_RULE}"),
    ("a.jsonl", '{"prompt": "p", "seed": 1e16}', f", line 1: seed is 1e+16; {SEED_RULE}"),
    ("a.parquet", "PAR1", ": is not a readable Parquet file: "),
    ("a.json", "{}", ": unknown format '.json'; allowed: .jsonl, .ndjson, .csv, .tsv, .txt, .parquet, also compressed"),
    ("a.jsonl.gz", "{}", ": cannot be read: "),
]


@pytest.mark.parametrize(("name", "text", "expected"), TEXT_MISTAKES)
def test_files(tmp_path: Path, name: str, text: str, expected: str) -> None:
    (tmp_path / name).write_text(text)
    message = refusal(tmp_path / name)
    assert expected in message
    assert message.startswith(str(tmp_path / name))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_bytes_that_are_not_utf8(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"prompt\n\xff\n")
    reason = "can't decode byte 0xff in position 7: invalid start byte; see data.encoding"
    assert refusal(tmp_path / name) == f"{tmp_path / name}: is not UTF-8 text: {reason}"


UNSAFE = ["", "../x", "/etc/x", "a\\b", "a.b", "a\0b", "a\nb", "a\x1f", "a\x7f", "é\x80", "a\x9f", "\ud800", "k" * 201, "ü" * 101]


@pytest.mark.parametrize("key", UNSAFE)
def test_unsafe_keys(tmp_path: Path, key: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(OK.replace("}", ', "key": "ok"}') + json.dumps({"prompt": "p", "key": key}))
    shown = repr(key) if len(key) < 58 else f"{repr(key)[:57]}..."
    assert refusal(path) == f"{path}, line 2: key is {shown}; {KEY_RULE}"


def test_safe_keys(tmp_path: Path) -> None:
    keys = ["ok£", "日本é", "k" * 200, "A b-c_d"]
    pq.write_table(pa.table({"prompt": ["p"] * 4, "key": keys}), tmp_path / "a.parquet")
    assert [sample.key for sample in samples_of(plan_of(tmp_path / "a.parquet"))] == keys


def test_a_key_leaves_room_for_its_image_suffix(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "p", "key": "k" * 198}))
    assert plan_of(path, images=10).rows == 10
    assert "allowed: 1 to 197 bytes" in refusal(path, images=11)


def test_duplicate_keys_name_both_places(tmp_path: Path) -> None:
    one, two = tmp_path / "a.jsonl", tmp_path / "b.parquet"
    one.write_text('{"prompt": "p", "id": 7}\n\n{"prompt": "q", "id": 8}\n')
    pq.write_table(pa.table({"prompt": ["r", "s"], "id": ["9", "8"]}), two)
    expected = f"{two}, row 2: key '8' is also at {one}, line 3; allowed: unique keys"
    assert refusal(one, two, key_column="id") == expected
    assert refusal(one, two, key_column="id", images=3) == expected


def test_parquet_rows_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["p", None]}), tmp_path / "a.parquet")
    assert refusal(tmp_path / "a.parquet") == f"{tmp_path}/a.parquet, row 2: {NO_PROMPT}"


PARQUET_MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"prompt": [1, 2]}, ", row 1: prompt is 1; allowed: text in Unicode, not null"),
    ({"prompt": [b"p", b"q"]}, ", row 1: prompt is b'p'; allowed: text in Unicode, not null"),
    ({"text": ["p", "q"]}, ": has no column 'prompt'; columns there: 'text'"),
    ({"prompt": ["p", "q"], "key": ["a", "b.c"]}, f", row 2: key is 'b.c'; {KEY_RULE}"),
    ({"prompt": ["p", "q"], "key": ["a", "b\x85"]}, f", row 2: key is 'b\\x85'; {KEY_RULE}"),
    ({"prompt": ["p", "q"], "key": ["a", ""]}, f", row 2: key is ''; {KEY_RULE}"),
    ({"prompt": ["p", "q"], "key": ["a", None]}, ", row 2: key is None; allowed: text or an integer"),
    ({"prompt": ["p", "q"], "key": [1.0, 2.0]}, ", row 1: key is 1.0; allowed: text or an integer"),
    ({"prompt": ["p", "q"], "key": [True, False]}, ", row 1: key is True; allowed: text or an integer"),
    ({"prompt": ["p", "q"], "key": [3, 3]}, ", row 2: key '3' is also at {}, row 1; allowed: unique keys"),
    ({"prompt": ["p", "q"], "seed": [0, -1]}, f", row 2: seed is -1; {SEED_RULE}"),
    ({"prompt": ["p", "q"], "seed": pa.array([0, 2**63], pa.uint64())}, f", row 2: seed is 9223372036854775808; {SEED_RULE}"),
    ({"prompt": ["p", "q"], "seed": [0.5, 1.0]}, f", row 1: seed is 0.5; {SEED_RULE}"),
    ({"prompt": ["p", "q"], "negative_prompt": [None, 1]}, ", row 2: negative_prompt is 1; allowed: text in Unicode or null"),
    ({"prompt": ["p"], "steps": [1], "input_steps": [1]}, ": has a column 'input_steps', as which 'steps' is stored; allowed:"),
    ({"prompt": pa.array([], pa.string())}, ": no prompts; allowed: one row or more"),
]


@pytest.mark.parametrize(("columns", "expected"), PARQUET_MISTAKES)
def test_mistakes_in_parquet(tmp_path: Path, columns: dict[str, Any], expected: str) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path)
    assert refusal(path).startswith(f"{path}{expected.format(path)}")


def test_a_column_of_keys_that_begins_in_the_middle_is_refused_at_the_first_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_text("\n" + OK * 3 + '{"prompt": "p", "key": "k"}')
    expected = f"{tmp_path}/a.jsonl, line 2: key is None; allowed: text or an integer"
    assert refusal(tmp_path / "a.jsonl") == expected
    in_pieces(monkeypatch, 1)
    assert refusal(tmp_path / "a.jsonl") == expected


def test_duplicates_are_found_between_files_and_made_keys(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("p\n\nq\n")
    pq.write_table(pa.table({"prompt": ["r", "s"], "key": ["x", "a-00000001"]}), tmp_path / "b.parquet")
    expected = f"{tmp_path}/b.parquet, row 2: key 'a-00000001' is also at {tmp_path}/a.txt, line 3; allowed: unique keys"
    assert refusal(tmp_path / "a.txt", tmp_path / "b.parquet") == expected


def test_bytes_that_are_not_utf8_are_placed_in_the_whole_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + b"line\n" * 10_000 + b"\xff\n")
    assert "can't decode byte 0xff in position 50003: invalid start byte" in refusal(tmp_path / "a.txt")


def test_key_column_must_exist(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(OK)
    assert refusal(tmp_path / "a.jsonl", key_column="id") == (
        f"{tmp_path}/a.jsonl: has no column 'id'; columns there: 'prompt'; see data.key_column"
    )


def test_what_is_not_there(tmp_path: Path) -> None:
    assert refusal(tmp_path / "a.txt") == f"{tmp_path}/a.txt: no such file"
    assert refusal("memory://nowhere/a.txt") == "memory://nowhere/a.txt: no such file"
    assert refusal(tmp_path / "*.txt") == f"{tmp_path}/*.txt: matches no file"
    assert refusal("nosuch://a.txt") == "nosuch://a.txt: cannot be found: Protocol not known: nosuch"
    assert refusal(tmp_path) == f"{tmp_path}: is a directory; allowed: files, or a glob such as {tmp_path}/*.parquet"


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "b\udcfc.txt").write_text("p\n")
    for given in (tmp_path / "*.txt", tmp_path / "b\udcfc.txt"):
        assert refusal(given).endswith("b\\udcfc.txt' is not UTF-8; allowed: UTF-8, in a locale such as C.UTF-8")


def test_every_empty_file_is_named(tmp_path: Path) -> None:
    for name in ("a.txt", "b.csv"):
        (tmp_path / name).write_text("")
    expected = f"{tmp_path}/a.txt, {tmp_path}/b.csv: no prompts; allowed: one row or more"
    assert refusal(tmp_path / "a.txt", tmp_path / "b.csv") == expected


def test_remote_files_are_named_by_url() -> None:
    with fsspec.open("memory://errors/a.jsonl", "w") as file:
        file.write("5")
    assert refusal("memory://errors/*.jsonl") == "memory:///errors/a.jsonl, line 1: holds a int; allowed: a JSON object a line"


def test_secrets_in_urls_are_not_shown() -> None:
    message = refusal("https://user:pass@localhost:1/a.xyz?token=hidden")
    assert "hidden" not in message and "pass" not in message


def test_secrets_in_names_of_columns_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"s3://me:{'hidden-' * 20}@bucket/a.png\na red circle\n")
    named = "'s3://***@bucket/a.png'; see data.prompt_column"
    assert refusal(tmp_path / "a.csv") == f"{tmp_path}/a.csv: has no column 'prompt'; columns there: {named}"
