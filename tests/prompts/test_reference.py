"""Random tables in all formats, compared with a plain reader that holds everything and knows no pieces."""

import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybridiff.prompts import content, table
from hybridiff.prompts.plan import Plan
from hybridiff.prompts.rows import given_seed, image_seed
from tests.prompts.planning import both, in_pieces, samples_of

ALPHABET = "ab 1.,;\t\"'\\/{}[]äß猫🟢\u00a0\u2028\u0301#&~%"
NAMES = ["a", "b b", "ü", "steps", "x.y", "_", "url"]
Rows = list[dict[str, Any]]


def text(rng: random.Random, lines: bool = False) -> str:
    return "".join(rng.choice(ALPHABET + ("\n\r" if lines else "")) for _ in range(rng.randrange(1, 12))) + "."


def scalar(rng: random.Random) -> Any:
    return rng.choice(
        [
            None,
            True,
            False,
            rng.randrange(-5, 5),
            rng.randrange(-(2**62), 2**62),
            2**70,
            rng.random(),
            1e300,
            2.0,
            text(rng, True),
        ]
    )


def value(rng: random.Random, depth: int = 2) -> Any:
    if depth and rng.random() < 0.2:
        return [value(rng, depth - 1) for _ in range(rng.randrange(3))]
    if depth and rng.random() < 0.2:
        return {text(rng): value(rng, depth - 1) for _ in range(rng.randrange(3))}
    return scalar(rng)


def random_rows(rng: random.Random, make: Callable[[], Any], names: list[str], lines: bool) -> Rows:
    """Rows whose columns hold values of one kind each, or of all."""
    kinds = {name: rng.choice([make, make, lambda: rng.randrange(9), lambda: rng.choice([1, 0.5, None])]) for name in names}
    has = {name: rng.random() < 0.6 for name in ("key", "seed", "negative_prompt")}
    rows = []
    for number in range(rng.randrange(1, 40)):
        row: dict[str, Any] = {"prompt": text(rng, lines)}
        row |= {"key": rng.choice([f"k{number}", f"käse {number}"])} if has["key"] else {}
        row |= {"seed": rng.choice([None, rng.randrange(2**63)])} if has["seed"] else {}
        row |= {"negative_prompt": rng.choice([None, text(rng, lines)])} if has["negative_prompt"] else {}
        rows.append(row | {name: kind() for name, kind in kinds.items()})
    return rows


def as_json(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def column_of(values: list[Any]) -> list[Any]:
    """A column of JSON as the corpus holds it: scalars of one type as they are, else JSON text."""
    types = {type(one) for one in values} - {type(None)}
    numbers = all(not isinstance(one, int) or abs(one) <= 2**53 for one in values)
    if types == {int, float} and numbers:
        return [None if one is None else float(one) for one in values]
    fits = types != {int} or all(one is None or -(2**63) <= one < 2**63 for one in values)
    return values if len(types) <= 1 and not types & {list, dict} and fits else list(map(as_json, values))


def expected(rows: Rows, names: list[str], stem: str, convert: Callable[[list[Any]], list[Any]]) -> list[tuple[Any, ...]]:
    columns = {name: convert([row.get(name) for row in rows]) for name in names}
    found = []
    for number, row in enumerate(rows):
        key = row.get("key", f"{stem}-{number:08d}")
        for image in range(2):
            seed = image_seed(0, key, image) if row.get("seed") is None else given_seed(row["seed"], image)
            user = {f"input_{name}" if name == "steps" else name: columns[name][number] for name in names}
            found.append((f"{key}-{image}", row["prompt"], row.get("negative_prompt"), seed, user))
    return found


def assert_read(path: Path, wanted: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    contents = set()
    for pieces in (3, 7, 1 << 16):
        in_pieces(monkeypatch, pieces)
        plan: Plan = both(path, images=2, size=5, **options)
        found = [(s.key, s.prompt, s.negative_prompt, s.seed, s.columns) for s in samples_of(plan)]
        assert found == wanted, path.read_bytes()
        assert [list(one[4]) for one in found] == [list(one[4]) for one in wanted]
        contents.add(plan.content)
    assert len(contents) == 1


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups and single digests end early."""
    monkeypatch.setattr(table, "GROUP_ROWS", 8)
    monkeypatch.setattr(content, "SINGLE_ROWS", 8)
    monkeypatch.setattr(content, "BLOCKS", 4)


SEEDS = range(8)


@pytest.mark.parametrize("seed", SEEDS)
def test_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = random.Random(seed)
    names = rng.sample(NAMES, rng.randrange(5))
    rows = random_rows(rng, lambda: value(rng), names, lines=True)
    lines = [json.dumps(row, ensure_ascii=rng.random() < 0.5) + rng.choice(["\n", "\r\n", "\n\n"]) for row in rows]
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress("".join(lines).encode()))
    assert_read(path, expected(rows, names, "a", column_of), monkeypatch)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".csv", ";"), (".tsv", "\t")])
def test_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, suffix: str, delimiter: str) -> None:
    rng = random.Random(seed)
    names = rng.sample(NAMES, rng.randrange(1, 5))
    lines = suffix == ".csv"
    rows = random_rows(rng, lambda: rng.choice([None, "", text(rng, lines), "1.50", "007"]), names, lines)
    out = io.StringIO(newline="")
    header = list(rows[0])
    out.write(delimiter.join(header) + "\n")
    for row in rows:  # null: nothing; empty text: quotes; what needs them gets them, and some else
        cells = ["" if row[name] is None else cell(rng, str(row[name]), delimiter) for name in header]
        out.write(delimiter.join(cells) + rng.choice(["\n", "\r\n"]))
    path = tmp_path / f"a{suffix}"
    path.write_text(out.getvalue(), encoding="utf-8", newline="")
    wanted = expected(rows, names, "a", as_cells)
    assert_read(path, wanted, monkeypatch, delimiter=delimiter)


def as_cells(values: list[Any]) -> list[str | None]:
    return [None if one is None else str(one) for one in values]


def cell(rng: random.Random, value: str, delimiter: str) -> str:
    if value == "" or rng.random() < 0.3 or any(special in value for special in ('"', delimiter, "\n", "\r")):
        return '"' + value.replace('"', '""') + '"'
    return value


@pytest.mark.parametrize("seed", SEEDS)
def test_csv_of_pythons_own_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = random.Random(seed)
    rows = random_rows(rng, lambda: text(rng, True), ["a"], lines=True)
    for row in rows:
        row["seed"] = row["seed"] if row.get("seed") else 5
        row["negative_prompt"] = row.get("negative_prompt") or "n"
    path = tmp_path / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert_read(path, expected(rows, ["a"], "a", as_cells), monkeypatch)


PARQUET: dict[pa.DataType, Callable[[random.Random], Any]] = {
    pa.int8(): lambda rng: rng.randrange(-128, 128),
    pa.uint64(): lambda rng: rng.randrange(2**64),
    pa.float32(): lambda rng: rng.randrange(99) / 4,
    pa.bool_(): lambda rng: rng.random() < 0.5,
    pa.string(): lambda rng: text(rng, True),
    pa.large_string(): text,
    pa.binary(): lambda rng: rng.randbytes(3),
    pa.list_(pa.int16()): lambda rng: [rng.choice([None, 5]) for _ in range(rng.randrange(3))],
    pa.struct([("x", pa.string())]): lambda rng: {"x": rng.choice([None, "y"])},
    pa.null(): lambda _: None,
}


@pytest.mark.parametrize("seed", SEEDS)
def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = random.Random(seed)
    names = rng.sample(NAMES, rng.randrange(5))
    types = {name: rng.choice(list(PARQUET)) for name in names}
    rows = random_rows(rng, lambda: None, [], lines=True)
    for row in rows:
        row |= {name: rng.choice([None, PARQUET[kind](rng)]) for name, kind in types.items()}
    columns = {name: pa.array([row[name] for row in rows], types.get(name)) for name in rows[0]}
    pq.write_table(
        pa.table(columns), tmp_path / "a.parquet", row_group_size=rng.randrange(1, 20), use_dictionary=rng.random() < 0.5
    )
    assert_read(tmp_path / "a.parquet", expected(rows, names, "a", list), monkeypatch)


@pytest.mark.parametrize("seed", SEEDS)
def test_plain_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = random.Random(seed)
    rows = [{"prompt": text(rng)} for _ in range(rng.randrange(1, 40))]
    lines = [row["prompt"] + rng.choice(["\n", "\r\n", "\n \n", "\r"]) for row in rows]
    (tmp_path / "a.txt").write_text("".join(lines), encoding="utf-8", newline="")
    assert_read(tmp_path / "a.txt", expected(rows, [], "a", list), monkeypatch)
