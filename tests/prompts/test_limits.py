"""Tables that would take too much: deep ones, wide ones, long cells, files of unknown size; held and streamed ones alike."""

import gzip
import json
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybridiff.config import DataConfig, SamplingConfig
from hybridiff.corpus.shard import Sidecar
from hybridiff.errors import UsageError
from hybridiff.prompts.plan import Plan, make_plan
from hybridiff.prompts.streamed import StreamedRows

HELD, STREAMED = 1 << 30, -1


@pytest.fixture(params=[HELD, STREAMED], ids=["held", "streamed"])
def held_bytes(request: pytest.FixtureRequest) -> int:
    given: int = request.param
    return given


def plan_of(held_bytes: int, *prompts: Path | str) -> Plan:
    return make_plan(DataConfig([str(prompt) for prompt in prompts]), SamplingConfig(), 10_000, held_bytes=held_bytes)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def nested(levels: int, wrap: Callable[[Any], Any]) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = wrap(value)
    return value


@pytest.mark.parametrize("wrap", [lambda value: [value], lambda value: {"a": value}], ids=["lists", "objects"])
@pytest.mark.parametrize("levels", [1, 16, 17, 50, 100, 499])
def test_what_nests_deeply_is_text(tmp_path: Path, held_bytes: int, levels: int, wrap: Callable[[Any], Any]) -> None:
    value = nested(levels, wrap)
    plan = plan_of(held_bytes, write_rows(tmp_path / "a.jsonl", [{"prompt": "p", "x": value}, {"prompt": "q"}]))
    first, second = plan.shard(0).samples
    assert first.columns["x"] == (value if levels <= 16 else json.dumps(value)) and second.columns["x"] is None
    assert pa.types.is_string(plan.user_schema.field("x").type) == (levels > 16)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([first.columns], plan.user_schema), sink)
    assert pq.read_table(pa.BufferReader(sink.getvalue())).to_pylist() == [first.columns]
    sidecar = json.loads(Sidecar(plan.user_schema).encode(first.columns))
    assert list(sidecar) == ["x"] and json.loads(sidecar["x"]) == value


@pytest.mark.parametrize("levels", [500, 900, 5000])
def test_what_nests_too_deeply_to_be_read_is_refused(tmp_path: Path, held_bytes: int, levels: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "' + 600 * "[" + '"}\n{"prompt": "q", "x": ' + levels * "[" + levels * "]" + "}\n")
    with pytest.raises(UsageError) as refused:
        plan_of(held_bytes, path)
    assert str(refused.value) == f"{path}, line 2: nests deeply; allowed: 500 levels"


@pytest.mark.parametrize(
    "values",
    [
        [{"a": {"x": 1}}, {"a": {"y": 1}}],
        [[{"x": 1}], [{"y": 1}]],
        [[{"x": 1}, {}]],
        [{"a": [{"x": {"u": 1}}, {"x": {"v": 1}}]}],
    ],
)
def test_objects_inside_others_are_not_given_names_that_they_lack(tmp_path: Path, held_bytes: int, values: list[Any]) -> None:
    plan = plan_of(held_bytes, write_rows(tmp_path / "a.jsonl", [{"prompt": "p", "x": value} for value in values]))
    assert [sample.columns["x"] for sample in plan.shard(0).samples] == [json.dumps(value) for value in values]


def test_an_object_with_very_many_names_is_text(tmp_path: Path, held_bytes: int) -> None:
    value = {f"a{name}": {f"b{inner}": inner for inner in range(40)} for name in range(40)}
    plan = plan_of(held_bytes, write_rows(tmp_path / "a.jsonl", [{"prompt": "p", "x": value}]))
    assert plan.shard(0).samples[0].columns["x"] == json.dumps(value)


def columns_of(count: int, first: int = 0) -> dict[str, int]:
    return {f"c{number}": number for number in range(first, first + count)}


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_too_many_columns_are_refused(tmp_path: Path, held_bytes: int, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    for count in (999, 1000):  # beside the prompt
        row = {"prompt": "p", **columns_of(count)}
        if suffix == ".jsonl":
            write_rows(path, [row])
        elif suffix == ".csv":
            path.write_text(",".join(row) + "\n" + ",".join(map(str, row.values())) + "\n")
        else:
            pq.write_table(pa.Table.from_pylist([row]), path)
        if count == 999:
            assert plan_of(held_bytes, path).shard(0).samples[0].columns == columns_of(count)
    with pytest.raises(UsageError) as refused:
        plan_of(held_bytes, path)
    assert str(refused.value) == f"{path}: has more than 1000 columns; allowed: 1000 in all files together"


def test_so_are_too_many_in_all_files_together(tmp_path: Path, held_bytes: int) -> None:
    paths = [write_rows(tmp_path / f"{n}.jsonl", [{"prompt": "p", **columns_of(501, 500 * n)}]) for n in range(2)]
    assert len(plan_of(held_bytes, *paths[:1]).user_schema) == 501
    with pytest.raises(UsageError) as refused:
        plan_of(held_bytes, *paths)
    expected = f"{paths[1]}: brings the files to more than 1000 columns; allowed: 1000 in all together"
    assert str(refused.value) == expected


def test_rows_of_distinct_names_take_no_memory(tmp_path: Path, held_bytes: int) -> None:
    """The square of their number, that is."""
    path = write_rows(tmp_path / "a.jsonl", [{"prompt": "p", f"c{row}": 1} for row in range(20_000)])
    inner = write_rows(tmp_path / "b.jsonl", [{"prompt": "p", "x": {"a": {f"c{row}": 1}}} for row in range(20_000)])
    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match="has more than 1000 columns"):
            plan_of(held_bytes, path)
        before = pa.total_allocated_bytes()
        plan = plan_of(held_bytes, inner)
        assert pa.total_allocated_bytes() - before < 50e6 and plan.rows == 20_000
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".txt"])
def test_a_prompt_of_a_megabyte_is_taken_by_every_format(tmp_path: Path, held_bytes: int, suffix: str) -> None:
    prompt = 'say "猫" ' * 130_000
    quoted = '"' + prompt.replace('"', '""') + '"'
    path = tmp_path / f"a{suffix}"
    path.write_text({".jsonl": json.dumps({"prompt": prompt}), ".txt": prompt}.get(suffix, f"prompt\n{quoted}\n"))
    assert [sample.prompt for sample in plan_of(held_bytes, path).shard(0).samples] == [prompt]


def test_an_unclosed_quote_does_not_swallow_everything(tmp_path: Path, held_bytes: int) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt\n"' + 2_100_000 * "a line\n,")
    with pytest.raises(UsageError, match=r"a\.csv, line 2: is not a row of cells: field larger than field limit \(16777216\)$"):
        plan_of(held_bytes, path)


class Chunked(BaseHTTPRequestHandler):
    """Serves files without saying how large they are."""

    protocol_version = "HTTP/1.1"
    folder: Path

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        content = (self.folder / self.path.lstrip("/")).read_bytes()
        for start in range(0, len(content), 1 << 16):
            piece = content[start : start + (1 << 16)]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    handler = type("Handler", (Chunked,), {"folder": tmp_path})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.jsonl.gz"])
def test_files_of_unknown_size_are_never_held(tmp_path: Path, site: str, name: str) -> None:
    rows = [{"prompt": f"p {row}", "n": row} for row in range(5_000)]
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name, row_group_size=1000)
    elif name == "a.csv":
        (tmp_path / name).write_text("prompt,n\n" + "".join(f"{row['prompt']},{row['n']}\n" for row in rows))
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    plan = plan_of(HELD, f"{site}/{name}")
    assert isinstance(plan._rows, StreamedRows)
    assert [(sample.prompt, sample.columns) for sample in plan.shard(0).samples] == [(r["prompt"], {"n": r["n"]}) for r in rows]
