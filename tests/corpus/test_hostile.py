"""5,000 hostile rows: each is generated exactly as it was given or refused in a short line; nothing is written elsewhere.

Each table is planned twice, once held in memory and once streamed, to the same end.
"""

import csv
import io
import json
import random
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybridiff.config import DataConfig, SamplingConfig
from hybridiff.corpus import Corpus, Result, RunRecord, ShardWriter, verify
from hybridiff.corpus.reader import read_samples
from hybridiff.errors import UsageError
from hybridiff.prompts.plan import Plan, make_plan
from tests.corpus.corpora import PNG, RUN_VALUES

CASES, ROWS = 500, 10
HELD, STREAMED = 1 << 30, -1  # bytes that may be held
CELLS = "written as cells"  # the name under which a row here knows whether it was; no table has it
ODD = [
    "naïve café", "e\u0301 against \xe9", "猫と犬", "👩‍👩‍👧‍👦🏳️‍🌈",
    "\u202eright to left\u202c", "שלום עולם", "مرحبا", "\u200b\ufeffunseen", "zalgo" + "\u0301" * 60,
    "\U0010ffff\ufffe\uffff", "tab\tnewline\nreturn\rboth\r\n", "line\u2028paragraph\u2029", "NUL\x00inside",
    "\x1b[31mred\x1b[0m", "../../etc/passwd",
    "/etc/passwd", "C:\\Windows", "<script>alert(1)</script>", "'; DROP TABLE rows; --", '{"prompt": "nested"}',
    "{0} %s ${HOME} `id` $(id)",
    "=cmd|' /C calc'!A0", '"', "''", 'say "hi", twice', ",;\t|", "null", "NaN", "true", "1e400", "007",
    " ", "trailing ", "\\N", "-", "--help", "~", "*?[a]",
]  # fmt: skip
BAD_TEXTS = [None, 7, -1.5, True, [], {}, ["a"], {"a": {"b": [1, None]}}, "\ud800", "\udfff tail", float("nan")]
BAD_KEYS = [
    "", ".", "..", "../x", "/x", "a/b", "a\\b", "a.b", "nul\x00", "new\nline", "k" * 201, "é" * 101, "\ud800",
    1.5, True, [], None,
]  # fmt: skip
BAD_SEEDS = [-1, 2**63, 1.5, "x", True, [1], "1e3"]
RAW = [
    b'prompt\n"never closed\n', b'prompt,key\n"a"b,c\n', b"prompt,key\na\n", b"prompt\na,b,c\n", b"prompt,prompt\na,b\n",
    b"\xff\xfe\x00p", b"\x00\x00\x00",
    b"prompt\n\xc3\x28\n", b"", b"\n\n\n", b'{"prompt": "a"', b"[1, 2]", b'"text"', b'{"prompt": "a"}{"prompt": "b"}',
    b"PAR1garbagePAR1", b"[" * 5000,
    b'{"prompt": "\\ud800"}', b"\xef\xbb\xbfprompt\nwith a mark\n", b'prompt\n"a ""quoted"" cell"\n',
    b'{"prompt": 1, "prompt": "twice"}',
]  # fmt: skip


def text(rng: random.Random) -> str:
    if rng.random() < 0.001:
        return "m" * 1_000_000
    return "".join(rng.choices(ODD, k=rng.randint(1, 3)))


def deep(levels: int) -> Any:
    inside: Any = None
    for level in range(levels):
        inside = [inside] if level % 2 else {"a": inside}
    return inside


def value(rng: random.Random) -> Any:
    """Values of a user's column: anything that JSON holds."""
    nested = {"a": [rng.choice(ODD), None, 1], rng.choice(ODD): {}}
    plain = [text(rng), 3, 2**62, 2**80, -0.5, None, True, "\ud800"]
    return rng.choice([*plain, [], [1, "a", None], {}, nested, [[]], [{}], deep(rng.choice([10, 40, 400])), [{"a": 1}, {"b": 1}]])


def values(rng: random.Random, count: int) -> list[Any]:
    """Values of a whole column: at times of one kind, so that it has a type."""
    kinds = [(1, 2**62), (0.5, None, 3), (True, None), ([1], []), ({"a": [{"b": "x"}]}, None), ("a", None), (deep(60), deep(61))]
    return rng.choices(rng.choice(kinds), k=count) if rng.random() < 0.5 else [value(rng) for _ in range(count)]


def honest_row(rng: random.Random, place: str) -> dict[str, Any]:
    return {
        "key": rng.choice(["ключ", "猫 ", "-rf ", "~", "$HOME", "'", "*?[a]", "con", "\u202e"]) + place,
        "prompt": text(rng),
        "negative_prompt": rng.choice([None, text(rng)]),
        "seed": rng.choice([None, 0, 2**63 - 1]),
    }


def hostile_row(rng: random.Random, place: str) -> dict[str, Any]:
    row = honest_row(rng, place)
    name, bad = rng.choice([("prompt", BAD_TEXTS), ("negative_prompt", BAD_TEXTS[1:]), ("key", BAD_KEYS), ("seed", BAD_SEEDS)])
    row[name] = rng.choice([*bad, deep(600)] if name != "seed" else bad)
    if rng.random() < 0.1:
        del row["prompt"]
    return row


def with_columns(rng: random.Random, suffix: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with columns of the user's, of the types that a format has."""
    if suffix == ".parquet":
        return rows
    names = ["column", rng.choice(["status", "image", "../up", "", "ü"])]
    if suffix == ".jsonl":
        columns = {name: values(rng, len(rows)) for name in names}
    else:
        cells = [("1", "-2", None), ("1.5", "2.0"), ("007", "1"), ("1e3", "nan"), ("+5", "a, b", "\t", '"', " "), ODD]
        columns = {name: rng.choices(rng.choice(cells), k=len(rows)) for name in names}
    return [row | {name: column[place] for name, column in columns.items()} for place, row in enumerate(rows)]


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows in the format that the name says."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        schema = pa.schema([(name, pa.int64() if name == "seed" else pa.string()) for name in rows[0]])
        pq.write_table(pa.Table.from_pylist(rows, schema), path)
    else:
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(
            buffer,
            list(dict.fromkeys(name for row in rows for name in row)),
            quoting=csv.QUOTE_MINIMAL,
            delimiter="\t" if path.suffix == ".tsv" else ",",
        )
        writer.writeheader()
        writer.writerows(rows)
        path.write_bytes(buffer.getvalue().encode(errors="surrogatepass"))


def plan_of(tables: list[Path], held_bytes: int) -> Plan | str:
    """The plan, or why there is none."""
    try:
        data = DataConfig([str(path) for path in tables], empty_prompts="allow")
        return make_plan(data, SamplingConfig(), 1000, held_bytes=held_bytes)
    except UsageError as refused:
        return str(refused)


def generate(folder: Path, plan: Plan) -> Corpus:
    """The job with grey images in place of a model's."""
    corpus = Corpus(str(folder / "corpus"))
    record = RunRecord({"output": {}}, {"rows": plan.rows, "shards": plan.shards, "content": plan.content})
    corpus.start_run(record)
    for index in range(plan.shards):
        writer = ShardWriter(corpus, index, RUN_VALUES, plan.user_schema, PNG)
        for sample in plan.shard(index).samples:
            writer.write(Result(sample, np.full((8, 8, 3), 128, np.uint8), None, False, 1, 0, 0, None, None, []))
        writer.commit({})
    return corpus


def is_kept(stored: Any, given: Any, is_cell: bool) -> bool:
    """Whether a value is what was given: itself, as JSON where it is text now, or the number that a cell shows."""
    if stored == given:
        return isinstance(stored, bool) == isinstance(given, bool)
    if is_cell:
        return isinstance(stored, (int, float)) and repr(stored) == given
    return isinstance(stored, str) and bool(json.loads(stored) == given)


def check_generated(corpus: Corpus, rows: list[dict[str, Any]]) -> None:
    """Every value is as it was given, in the rows and in the tar; the tar could be unpacked anywhere."""
    written = pq.read_table(f"{corpus.root}/metadata/00000.parquet").to_pylist()
    with open(f"{corpus.root}/images/00000.tar", "rb") as handle:
        samples = dict(read_samples(handle))
    for row, given in zip(written, rows, strict=True):
        for name in ("key", "prompt", "negative_prompt"):
            assert row[name] == given[name]
        assert given["seed"] in (None, row["seed"])
        sidecar = json.loads(samples[row["key"]]["json"])
        for name in given.keys() - {"key", "prompt", "negative_prompt", "seed", CELLS}:
            stored = f"input_{name}" if name in ("status", "image") else name
            assert is_kept(row[stored], given[name], given[CELLS]), (row[stored], given[name])
            null = stored in sidecar.get("null_columns", ())  # a tar's first JSON shows the type of a null by an empty value
            assert (None if null else sidecar[stored]) == row[stored]
        assert samples[row["key"]]["txt"].decode() == given["prompt"]
        assert json.loads(samples[row["key"]]["json"])["prompt"] == given["prompt"]
    with tarfile.open(f"{corpus.root}/images/00000.tar") as tar:
        assert all(member.isfile() and "/" not in member.name and not member.name.startswith("..") for member in tar)


def outcome(folder: Path, tables: list[Path], rows: list[dict[str, Any]] | None, streamed: bool) -> str:
    held, read = plan_of(tables, HELD), plan_of(tables, STREAMED)
    if isinstance(held, str) or isinstance(read, str):
        assert isinstance(held, str) and held == read
        assert 0 < len(held) < 1000 and any(path.name in held for path in tables), held
        assert not (folder / "corpus").exists()
        return "refused"
    assert read.user_schema.equals(held.user_schema) and read.shard(0) == held.shard(0)
    corpus = generate(folder, read if streamed else held)
    if rows is not None:
        check_generated(corpus, rows)
    assert verify(corpus).whole, verify(corpus).problems
    return "generated"


@pytest.mark.timeout(300)
def test_rows_that_mean_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)  # of thousands of files
    rng, seen = random.Random(5), Counter[str]()
    (tmp_path / "outside").write_text("untouched")
    for case in range(CASES):
        folder = tmp_path / f"case{case}"
        folder.mkdir()
        honest, tables, rows = case % 2 == 0, [], []
        for number in range(rng.randint(1, 3) if honest else 1):
            suffix = rng.choice([".jsonl", ".csv", ".tsv", ".parquet"][: 4 if honest else 3])
            path = folder / f"table{number}{suffix}"
            part = [honest_row(rng, f" {number} {i}") for i in range(ROWS)]
            if not honest:
                part[rng.randrange(ROWS)] = hostile_row(rng, " bad")
            part = with_columns(rng, suffix, part)
            if not honest and rng.random() < 0.05:
                part[-1] |= {f"column{more}": more for more in range(1100)}
            write_table(path, part)
            tables.append(path)
            rows += [row | {CELLS: suffix in (".csv", ".tsv")} for row in part]
        result = outcome(folder, tables, rows if honest else None, streamed=case % 4 < 2)
        seen[f"{'honest' if honest else 'hostile'} {result}"] += 1
        assert {path.name for path in folder.iterdir()} <= {"corpus", *(path.name for path in tables)}
        found = {path.name for path in (folder / "corpus").iterdir()} if result == "generated" else set()
        assert found <= {"images", "metadata", "commits", "stats", "run.json"}
    assert seen["honest generated"] == CASES // 2, seen
    assert seen["hostile refused"] > CASES // 4, seen
    assert (tmp_path / "outside").read_text() == "untouched" and len(list(tmp_path.iterdir())) == CASES + 1


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".txt", ".parquet", ".csv.gz"])
@pytest.mark.parametrize("content", RAW, ids=lambda content: repr(content[:12]))
def test_files_that_are_not_what_they_say(tmp_path: Path, suffix: str, content: bytes) -> None:
    table = tmp_path / f"table{suffix}"
    table.write_bytes(content)
    assert outcome(tmp_path, [table], None, streamed=True) in ("generated", "refused")
    assert {path.name for path in tmp_path.iterdir()} <= {"corpus", table.name}
