"""An own source of prompts gives the rows that a file with them would."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from hybridiff.config import DataConfig, SamplingConfig
from hybridiff.corpus import Corpus
from hybridiff.errors import UsageError
from hybridiff.prompts import PromptSource, text_formats
from hybridiff.prompts.plan import make_plan
from tests.prompts.planning import DISK, both, in_pieces, plan_of, refusal, samples_of

ROWS: list[dict[str, Any]] = [
    {"prompt": "a red circle", "n": 1, "tags": ["x"]},
    {"prompt": "a blue square", "n": 0.5, "seed": 7, "late": True},
    {"prompt": "a green cross", "negative_prompt": "blurry", "n": None},
]


class Rows:
    """Any rows."""

    def __init__(self, rows: list[Any], version: str = "1") -> None:
        self.rows, self.version = rows, version

    def identity(self) -> str:
        return f"rows of a test, version {self.version}"

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)


def test_the_protocol_is_public() -> None:
    assert isinstance(Rows([]), PromptSource) and not isinstance([], PromptSource)


def test_a_configuration_names_its_class(tmp_path: Path) -> None:
    spec = {"class_path": f"{__name__}.Rows", "init_args": {"rows": ROWS, "version": "2"}}
    for given in (spec, [spec]):
        assert samples_of(both(*DataConfig(given).sources)) == samples_of(both(Rows(ROWS)))
        assert DataConfig(given).names == ["Rows"]
    (tmp_path / "a.txt").write_text("first\n")
    assert [sample.prompt for sample in samples_of(both(tmp_path / "a.txt", spec))][:2] == ["first", "a red circle"]


SPECS: list[tuple[dict[str, Any], str]] = [
    ({"class_path": "Rows"}, r"is .*; allowed: class_path \(module\.Class\) and init_args"),
    ({"class_path": "a.b", "args": {}}, r"is .*; allowed: class_path"),
    ({"init_args": {}}, r"is .*; allowed: class_path"),
    ({"class_path": "no.such.Rows"}, r"no\.such\.Rows can't be made: ModuleNotFoundError: No module named 'no'"),
    ({"class_path": "json.Rows"}, r"json\.Rows can't be made: AttributeError: "),
    ({"class_path": f"{__name__}.Rows", "init_args": {"lines": 1}}, r"can't be made: TypeError: .*'lines'"),
    ({"class_path": "collections.OrderedDict"}, r"is .*; allowed: files, urls, globs, and own sources"),
]


@pytest.mark.parametrize(("spec", "message"), SPECS)
def test_a_class_that_is_none_is_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=rf"^data\.prompts:? .*{message}") as refused:
        DataConfig([spec])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("pieces", [1, 2, None])
def test_dicts_are_rows_of_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: int | None) -> None:
    if pieces:
        in_pieces(monkeypatch, pieces)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    own, file = both(Rows(ROWS), images=2), both(tmp_path / "rows.jsonl", images=2)
    assert samples_of(own) == samples_of(file) and own.content == file.content
    assert [sample.key for sample in samples_of(own)][::2] == [f"rows-{row:08d}-0" for row in range(3)]


def test_arrow_batches_keep_their_types() -> None:
    batch = pa.RecordBatch.from_pydict({"prompt": ["p", "q"], "n": pa.array([1, 2], pa.int8()), "d": pa.array(["a", "a"])})
    plan = both(Rows([batch, {"prompt": "r", "n": 3}, pa.table({"prompt": ["s"], "d": pa.array(["b"]).dictionary_encode()})]))
    assert plan.user_schema == pa.schema([("n", pa.int64()), ("d", pa.string())])
    assert [(s.prompt, s.columns["n"], s.columns["d"]) for s in samples_of(plan)] == [
        ("p", 1, "a"),
        ("q", 2, "a"),
        ("r", 3, None),
        ("s", None, "b"),
    ]


def test_sources_and_files_follow_each_other(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("first\n")
    plan = both(tmp_path / "a.txt", Rows(ROWS), Rows([{"prompt": "last", "n": np.float32(0.5)}]))
    assert [s.key for s in samples_of(plan)] == ["a-00000000", *(f"rows-1-{row:08d}" for row in range(3)), "rows-2-00000000"]
    assert samples_of(plan)[-1].columns["n"] == 0.5


def test_a_large_source_is_read_again_once_its_identity_changes(tmp_path: Path) -> None:
    corpus = Corpus(str(tmp_path / "out"))

    def prompts(source: Rows) -> list[str]:
        plan = make_plan(DataConfig(source), SamplingConfig(), 2, corpus, "lead", DISK)
        return [sample.prompt for sample in samples_of(plan)]

    assert prompts(Rows([{"prompt": "one"}])) == ["one"]
    assert prompts(Rows([{"prompt": "two"}])) == ["one"], "its identity says that it is the same"
    assert prompts(Rows([{"prompt": "two"}], "2")) == ["two"]


def failing() -> Iterator[Any]:
    yield {"prompt": "p"}
    raise RuntimeError("the query failed")


class Failing(Rows):
    def __iter__(self) -> Iterator[Any]:
        return failing()


MISTAKES: list[tuple[Callable[[], Rows], str]] = [
    (lambda: Rows([]), "Rows: no prompts; allowed: one row or more"),
    (lambda: Rows([{"prompt": "p"}, {"prompt": 5}]), "Rows, row 2: prompt is 5; allowed: text in Unicode, not null"),
    (lambda: Rows([{"prompt": "p"}, ["p"]]), "Rows, row 2: is a list; allowed: a dict, or an Arrow batch"),
    (lambda: Rows([{"prompt": "p", "x": object}]), "Rows, row 1: 'x' is a type; allowed: text as names; bool, int, "),
    (lambda: Rows([{"prompt": "p", 5: 1}]), "Rows, row 1: 5 is a int; allowed: text as names; bool, int, "),
    (lambda: Rows([{"prompt": "p", "Seed": 1}]), "Rows: has a column 'Seed'; allowed: 'seed', if that is meant, or another name"),
    (lambda: Failing([]), "Failing: cannot be read: the query failed"),
    (lambda: Rows([{"prompt": "p", "key": "k"}, {"prompt": "p", "key": "k"}]), "Rows, row 2: key 'k' is also at Rows, row 1; "),
]


@pytest.mark.parametrize(("source", "expected"), MISTAKES)
def test_mistakes_are_refused_with_the_row(source: Callable[[], Rows], expected: str) -> None:
    assert refusal(source()).startswith(expected)


def test_a_source_that_cannot_say_what_it_is_is_refused(tmp_path: Path) -> None:
    class Nameless(Rows):
        def identity(self) -> str:
            raise ValueError("no version")

    plan_of(Nameless(ROWS))  # nothing is shared, so nobody asks
    with pytest.raises(UsageError, match=r"^Nameless: identity\(\) failed: no version$"):
        make_plan(DataConfig(Nameless(ROWS)), SamplingConfig(), 2, Corpus(str(tmp_path / "out")), "lead", DISK)


def test_rows_of_an_own_source_are_gathered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_formats, "CHUNK_ROWS", 64)
    plan = both(Rows([{"prompt": f"p{row}"} for row in range(1000)]))
    assert [sample.prompt for sample in samples_of(plan)] == [f"p{row}" for row in range(1000)]
