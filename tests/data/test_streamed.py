"""Tables too large for memory give the same rows, and refuse the same mistakes, as small ones."""

import functools
import gzip
import json
import threading
import time
import uuid
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybridiff.config import DataConfig, SamplingConfig, UsageError
from hybridiff.data import copies, making, parts, scan, shared_copies
from hybridiff.data.keyhash import KeyHashes, are_safe, hash_keys
from hybridiff.data.plan import Plan, make_plan
from hybridiff.data.record import identity
from hybridiff.data.rows import Request, Sample
from hybridiff.data.shared_copies import SharedCopies
from hybridiff.data.tables import find_sources
from hybridiff.sinks import Corpus
from tests.data.test_errors import TEXT_MISTAKES

STREAMED = -1  # bytes that may be held


def plan_of(*prompts: str | Path, held_bytes: int = STREAMED, images: int = 1, **options: Any) -> Plan:
    sampling = SamplingConfig(images_per_prompt=images)
    return make_plan(DataConfig([str(prompt) for prompt in prompts], **options), sampling, 1000, held_bytes=held_bytes)


def samples_of(plan: Plan) -> list[Sample]:
    return [sample for index in range(plan.shards) for sample in plan.shard(index).samples]


def assert_same(*prompts: str | Path, **options: Any) -> None:
    held, streamed = plan_of(*prompts, held_bytes=1 << 30, **options), plan_of(*prompts, **options)
    assert samples_of(streamed) == samples_of(held)
    assert streamed.user_schema.equals(held.user_schema)


def refusal(*prompts: str | Path, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        plan_of(*prompts, **options)
    return str(caught.value)


FILES: dict[str, str | bytes] = {
    "a.txt": "one\n\ntwo\r\nthree",
    "b.csv": 'prompt,key,negative_prompt,seed,int,float,padded,none,mixed\n"p, 1",007,,5,1,1.5,007,,1\n1e3,8,"",,-2,2.0,010,,x\n',
    "c.tsv": "prompt\tint\nü\t4611686018427387904\n",
    "d.jsonl.gz": gzip.compress(
        b'{"prompt": "j", "list": [1], "obj": {"a": 1}, "mixed": 1, "big": 1180591620717411303424, "steps": 3}\n'
        b'{"prompt": "k", "half": "\\ud800", "obj": {"a": 2}, "mixed": null, "int": 1.5}\n'
    ),
    "e.ndjson": '{"prompt": "l", "obj": {"b": 2}}\n',
}


@pytest.fixture
def tables(tmp_path: Path) -> list[Path]:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    columns = {
        "prompt": pa.array(["p", "q"]).dictionary_encode(),
        "key": pa.array([7, 9], pa.uint8()),
        "seed": pa.array([None, 4], pa.int16()),
        "negative_prompt": pa.nulls(2),
        "time": pa.array([1_000, 2_000], pa.timestamp("ns")),
        "exact": pa.array([1, 2], pa.timestamp("ns")),
        "int": pa.array([1, 2], pa.int8()),
        "deep": [[{"x": 1}], None],
        "map": pa.array([[("ü", 1), ("b", None)], None], pa.map_(pa.string(), pa.int8())),
        "maps": pa.array([[], [[("a", 1)]]], pa.list_(pa.map_(pa.string(), pa.int8()))),
        "view": pa.array([[1], []], pa.list_view(pa.int8())),
    }
    pq.write_table(pa.table(columns), tmp_path / "f.parquet")
    (tmp_path / "g.parquet.gz").write_bytes(gzip.compress((tmp_path / "f.parquet").read_bytes()))
    return sorted(tmp_path.iterdir())


@pytest.fixture(params=[1, None], ids=["row by row", "at once"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read in pieces of this many rows."""
    if request.param is not None:
        in_pieces(monkeypatch, request.param)


def in_pieces(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(copies, "read_text", functools.partial(copies.read_text, chunk_rows=rows))
    for module in (parts, scan):
        monkeypatch.setattr(module, "BATCH_ROWS", rows)


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


def with_bytes(values: list[bytes | None], kind: pa.DataType | None = None) -> pa.Array:
    """Text of any bytes, as some writers let it pass."""
    column = pa.array(values, pa.binary())
    text = pa.Array.from_buffers(pa.string(), len(column), column.buffers())
    if kind is None:
        return text
    return text.dictionary_encode() if pa.types.is_dictionary(kind) else text.cast(kind)


TEXT_KINDS = [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]


@pytest.mark.parametrize("kind", TEXT_KINDS, ids=str)
def test_a_row_that_is_not_utf8_fails_alone(tmp_path: Path, kind: pa.DataType) -> None:
    prompts = with_bytes([b"p%d" % row for row in range(8)] + [b"a \xff\xfe red", b"last \xe7\x8c\xab"], kind)
    pq.write_table(pa.table({"prompt": prompts, "n": range(10)}), tmp_path / "a.parquet", row_group_size=4)
    samples = samples_of(plan_of(tmp_path / "a.parquet"))
    assert [sample.error for sample in samples] == [None] * 8 + [
        "'prompt' can't be read: it is not UTF-8 text, from its byte 2 on",
        None,
    ]
    assert [sample.prompt for sample in samples[7:]] == ["p7", "a \ufffd\ufffd red", "last 猫"]
    assert [sample.columns for sample in samples] == [{"n": row} for row in range(10)]


@pytest.mark.parametrize("kind", TEXT_KINDS, ids=str)
@pytest.mark.parametrize("name", ["negative_prompt", "note"])
def test_so_does_one_with_other_text_that_is_not(tmp_path: Path, name: str, kind: pa.DataType) -> None:
    table = pa.table({"prompt": ["p", "q", "r"], name: with_bytes([None, b"\x80", b"fine"], kind)})
    pq.write_table(table, tmp_path / "a.parquet")
    samples = samples_of(plan_of(tmp_path / "a.parquet", images=2))
    expected = f"'{name}' can't be read: it is not UTF-8 text, from its byte 0 on"
    assert [sample.error for sample in samples] == [None, None, expected, expected, None, None]
    values = [sample.columns.get(name, sample.negative_prompt) for sample in samples[::2]]
    assert values == [None, "\ufffd", "fine"]


def test_so_does_one_with_other_values_that_cannot_be_had(tmp_path: Path) -> None:
    years = pa.array([0, 2**59, None], pa.timestamp("us"))
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 1, 3], pa.int32()), with_bytes([b"a", b"b", b"\xff"]))
    pq.write_table(pa.table({"prompt": ["p", "q", "r"], "year": years, "tags": lists}), tmp_path / "a.parquet")
    samples = samples_of(plan_of(tmp_path / "a.parquet"))
    assert [list(sample.columns.values())[1] for sample in samples] == [["a"], [], None]
    assert samples[0].error is None and samples[0].columns["year"].year == 1970
    assert str(samples[1].error).startswith("'year' can't be read: ") and samples[1].columns["year"] is None
    assert str(samples[2].error).startswith("'tags' can't be read: ")
    pq.write_table(pa.table({"prompt": ["p", "q", "r"], "year": years}), tmp_path / "a.parquet")
    assert refusal(tmp_path / "a.parquet", held_bytes=1 << 30).startswith(f"{tmp_path}/a.parquet: a row can't be read: ")


def test_so_does_one_with_text_in_a_map_that_is_not(tmp_path: Path) -> None:
    names = with_bytes([b"a", b"\xff"])
    maps = pa.MapArray.from_arrays(pa.array([0, 1, 2], pa.int32()), names, pa.array([1, 2]))
    pq.write_table(pa.table({"prompt": ["p", "q"], "map": maps}), tmp_path / "a.parquet")
    samples = samples_of(plan_of(tmp_path / "a.parquet"))
    assert [sample.columns["map"] for sample in samples] == ['[["a", 1]]', None]
    assert samples[0].error is None and str(samples[1].error).startswith("'map' can't be read: ")


@pytest.mark.parametrize("held_bytes", [STREAMED, 1 << 30])
def test_keys_are_refused_where_they_are_not_utf8(tmp_path: Path, held_bytes: int) -> None:
    pq.write_table(pa.table({"prompt": ["p", "q"], "key": with_bytes([b"k", b"\xffk"])}), tmp_path / "a.parquet")
    message = refusal(tmp_path / "a.parquet", held_bytes=held_bytes)
    assert message.startswith(f"{tmp_path}/a.parquet") and "UTF" in message and "\n" not in message
    if held_bytes == STREAMED:
        assert message == f"{tmp_path}/a.parquet, row 2: 'key' can't be read: it is not UTF-8 text, from its byte 0 on"


def test_null_prompts_are_refused_beside_text_that_is_not_utf8(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": with_bytes([b"\xff", None])}), tmp_path / "a.parquet")
    assert refusal(tmp_path / "a.parquet") == f"{tmp_path}/a.parquet, row 2: prompt is None; allowed: text in Unicode, not null"


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


@pytest.mark.parametrize("held", [10, 1 << 20])
def test_repeated_hashes_are_found_in_memory_and_on_disk(held: int) -> None:
    values = np.random.default_rng(0).integers(0, 2**64, 1000, np.uint64)
    with KeyHashes(held) as hashes:
        hashes.add(values)
        hashes.add(values[[5, 700]])
        assert hashes.repeated().tolist() == sorted(values[[5, 700]].tolist())


def test_hashes_depend_on_the_key_alone() -> None:
    keys = [f"{'ü' * (row % 7)}{row}" for row in range(5_000)] + ["", "a\0", "a"]
    hashes = hash_keys(pa.array(keys))
    assert len(set(hashes.tolist())) == len(keys)
    assert [hash_keys(pa.array([key]))[0] for key in keys[:50]] == hashes[:50].tolist()
    assert hash_keys(pa.array(keys).slice(3, 40)).tolist() == hashes[3:43].tolist()


def test_different_keys_of_one_hash_are_no_duplicates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"prompt": ["p", "q"], "key": ["a", "b"]}), tmp_path / "a.parquet")
    monkeypatch.setattr(scan, "hash_keys", lambda keys: np.zeros(len(keys), np.uint64))
    assert [sample.key for sample in samples_of(plan_of(tmp_path / "a.parquet"))] == ["a", "b"]


@pytest.mark.parametrize("key", ["a/b", "a\\b", "a.b", "a\x7f", "a\x1f", "\x80", "é\x9f", "", "k" * 201])
def test_unsafe_keys_are_never_taken_for_safe(key: str) -> None:
    assert not are_safe(pa.array(["ok", key]), 200)
    assert are_safe(pa.array(["ok£", "日本é", "k" * 200]), 200)


def test_remote_tables_and_stores(tables: list[Path]) -> None:
    root = f"memory://streamed-{uuid.uuid4().hex}"
    for path in tables[:6]:
        with fsspec.open(f"{root}/{path.name}", "wb") as file:
            file.write(path.read_bytes())
    data = DataConfig([f"{root}/{path.name}" for path in tables[:6]])
    corpus = Corpus(f"{root}/corpus")
    plans = [make_plan(data, SamplingConfig(), 3, corpus, "lead", STREAMED) for _ in range(2)]
    assert len(corpus.names("tables")) == 6
    held = make_plan(data, SamplingConfig(), 3, held_bytes=1 << 30)
    assert [samples_of(plan) for plan in plans] == [samples_of(held)] * 2


class CountingCorpus(Corpus):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.opened: list[str] = []

    def publishing(self, name: str) -> AbstractContextManager[Any]:
        self.opened.append(name)
        return super().publishing(name)


def test_one_rank_copies_and_the_others_and_later_runs_read(tmp_path: Path, tables: list[Path]) -> None:
    corpus = CountingCorpus(str(tmp_path / "out"))
    data = DataConfig([str(path) for path in tables[:6]])
    plans: dict[str, Plan] = {}

    def follow() -> None:
        plans["follow"] = make_plan(data, SamplingConfig(), 3, corpus, "follow", STREAMED)

    follower = threading.Thread(target=follow)
    follower.start()
    plans["lead"] = make_plan(data, SamplingConfig(), 3, corpus, "lead", STREAMED)
    follower.join()
    plans["again"] = make_plan(data, SamplingConfig(), 3, corpus, "lead", STREAMED)
    plans["dry"] = make_plan(data, SamplingConfig(), 3, corpus, "alone", STREAMED)
    assert len(corpus.opened) == 5
    assert sorted(path.suffix for path in (tmp_path / "out/tables").iterdir()) == [".json"] + [".parquet"] * 5
    held = make_plan(data, SamplingConfig(), 3, held_bytes=1 << 30)
    for plan in plans.values():
        assert samples_of(plan) == samples_of(held)
        assert plan.content == plans["lead"].content and plan.user_schema.equals(held.user_schema)


def copies_of(tmp_path: Path, path: Path, patience_s: float = 0.1) -> tuple[Request, SharedCopies]:
    request = Request(find_sources([str(path)]), DataConfig([str(path)]), 1)
    store = Corpus(str(tmp_path / "out"))
    return request, SharedCopies(store, str(identity(request)), beat_s=patience_s / 10, patience_s=patience_s)


def leave_a_sign(place: SharedCopies) -> None:
    """As a leader that is killed."""
    sign = Path(place.path(0).removesuffix("-0.parquet") + ".making")
    sign.parent.mkdir(parents=True)
    sign.write_text("1 0123")


def test_nothing_of_a_copy_is_seen_before_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "p"}\n' * 20)
    (tmp_path / "b.jsonl").write_text('{"prompt": "p"}\n' * 20 + "{")
    in_pieces(monkeypatch, 10)
    request, place = copies_of(tmp_path, tmp_path / "?.jsonl")
    with pytest.raises(UsageError, match=r"line 21: is not JSON"):
        place.make(request)
    assert list((tmp_path / "out/tables").iterdir()) == []
    assert place.load(request) is None


def test_a_rank_whose_leader_died_stops_waiting(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("p")
    request, place = copies_of(tmp_path, tmp_path / "a.txt")
    leave_a_sign(place)
    assert place.wait(request) is None


def test_ranks_and_other_jobs_wait_for_a_leader_that_is_long_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("p")
    request, place = copies_of(tmp_path, tmp_path / "a.txt")
    begun, made = threading.Event(), []

    def slow(*arguments: Any) -> Any:
        begun.set()
        made.append(threading.current_thread().name)
        time.sleep(2.5)  # more than twice what is waited for a sign
        return making.make_ready(*arguments)

    monkeypatch.setattr(shared_copies, "make_ready", slow)
    leader = threading.Thread(target=place.make, args=[request], name="leader")
    leader.start()
    assert begun.wait(10)
    contents: list[str] = []
    others = [
        threading.Thread(target=lambda: contents.append(copies_of(tmp_path, tmp_path / "a.txt", 1.5)[1].wait(request).content)),
        threading.Thread(target=lambda: contents.append(copies_of(tmp_path, tmp_path / "a.txt", 1.5)[1].make(request).content)),
    ]
    for other in others:
        other.start()
    for thread in [leader, *others]:
        thread.join()
    assert made == ["leader"] and len(contents) == 2
    assert sorted(path.suffix for path in (tmp_path / "out/tables").iterdir()) == [".json", ".parquet"]


def test_a_store_that_fails_for_a_beat_does_not_end_the_making(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("p")
    _, place = copies_of(tmp_path, tmp_path / "a.txt")
    published: list[str] = []
    publish = Corpus.publish

    def sometimes(corpus: Corpus, name: str, data: bytes) -> None:
        published.append(name)
        if 1 < len(published) <= 3:
            raise OSError("gone for a while")
        publish(corpus, name, data)

    monkeypatch.setattr(Corpus, "publish", sometimes)
    with place.alive():
        deadline = time.monotonic() + 10
        while len(published) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(published) >= 5
    assert list((tmp_path / "out/tables").iterdir()) == []


def test_what_a_killed_leader_left_is_swept_away(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("p")
    request, place = copies_of(tmp_path, tmp_path / "a.txt")
    leave_a_sign(place)
    copy = Path(place.path(0))
    left = copy.with_name(f".{copy.name}.0123456789abcdef.tmp")
    left.write_bytes(b"PAR1")
    place.make(request)
    assert sorted(path.suffix for path in copy.parent.iterdir()) == [".json", ".parquet"]


def test_a_copy_that_was_removed_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("p")
    request, place = copies_of(tmp_path, tmp_path / "a.txt")
    content = place.make(request).content
    (copy,) = (tmp_path / "out/tables").glob("*.parquet")
    copy.unlink()
    assert place.load(request) is None
    assert place.make(request).content == content and copy.exists()


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("p")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UsageError, match=r"out: .* can't be written there: "):
        make_plan(DataConfig([str(tmp_path / "a.txt")]), SamplingConfig(), 3, Corpus(str(tmp_path / "out")), "lead", STREAMED)
