"""Tables that would take too much: deep ones, wide ones, long lines, archives that unfold, files of unknown size."""

import bz2
import gzip
import json
import lzma
import threading
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybridiff.config import DataConfig
from hybridiff.prompts import arrow_formats, sources, text_formats
from hybridiff.prompts.sources import find_sources
from tests.prompts.planning import both, plan_of, refusal


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def nested(levels: int, wrap: Callable[[Any], Any]) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = wrap(value)
    return value


@pytest.mark.parametrize("wrap", [lambda value: [value], lambda value: {"a": value}], ids=["lists", "objects"])
@pytest.mark.parametrize("levels", [1, 17, 100, 499])
def test_what_nests_is_json_text(tmp_path: Path, levels: int, wrap: Callable[[Any], Any]) -> None:
    value = nested(levels, wrap)
    plan = both(write_rows(tmp_path / "a.jsonl", [{"prompt": "p", "x": value}, {"prompt": "q"}]))
    assert [sample.columns["x"] for sample in plan.shard(0).samples] == [json.dumps(value), None]


@pytest.mark.parametrize("levels", [500, 900, 5000])
def test_what_nests_too_deeply_to_be_read_is_refused(tmp_path: Path, levels: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "' + 600 * "[" + '"}\n{"prompt": "q", "x": ' + levels * "[" + levels * "]" + "}\n")
    assert refusal(path) == f"{path}, line 2: nests deeply; allowed: 500 levels"


def columns_of(count: int, first: int = 0) -> dict[str, int]:
    return {f"c{number}": number for number in range(first, first + count)}


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_too_many_columns_are_refused(tmp_path: Path, suffix: str) -> None:
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
            assert list(both(path).shard(0).samples[0].columns) == list(columns_of(count))
    assert refusal(path) == f"{path}: has more than 1000 columns; allowed: 1000 in all files together"


def test_so_are_too_many_in_all_files_together(tmp_path: Path) -> None:
    paths = [write_rows(tmp_path / f"{n}.jsonl", [{"prompt": "p", **columns_of(501, 500 * n)}]) for n in range(2)]
    assert len(both(*paths[:1]).user_schema) == 501
    assert refusal(*paths) == f"{paths[1]}: brings the files to more than 1000 columns; allowed: 1000 in all together"


def test_rows_of_distinct_names_take_no_memory(tmp_path: Path) -> None:
    """The square of their number, that is."""
    path = write_rows(tmp_path / "a.jsonl", [{"prompt": "p", f"c{row}": 1} for row in range(5_000)])
    inner = write_rows(tmp_path / "b.jsonl", [{"prompt": "p", "x": {"a": {f"c{row}": 1}}} for row in range(5_000)])
    tracemalloc.start()
    try:
        assert "has more than 1000 columns" in refusal(path)
        before = pa.total_allocated_bytes()
        plan = plan_of(inner)
        assert pa.total_allocated_bytes() - before < 50e6 and plan.rows == 5_000
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".txt"])
def test_a_prompt_of_a_megabyte_is_read_from_every_format(tmp_path: Path, suffix: str) -> None:
    prompt = 'say "猫" ' * 130_000
    quoted = '"' + prompt.replace('"', '""') + '"'
    path = tmp_path / f"a{suffix}"
    path.write_text({".jsonl": json.dumps({"prompt": prompt}), ".txt": prompt}.get(suffix, f"prompt\n{quoted}\n"))
    assert [sample.prompt for sample in both(path).shard(0).samples] == [prompt]


def test_an_unclosed_quote_does_not_swallow_everything(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt,x\n"' + 20_000 * "a line\n,")
    allowed = "is longer than 100000 characters; allowed: that many, or a higher data.max_text"
    assert refusal(path, max_text=100_000) == f"{path}, line 2: a row {allowed}"


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.tsv", "a.txt.gz", "a.txt.zst", "a.txt.xz"])
def test_lines_without_an_end_are_refused(tmp_path: Path, name: str) -> None:
    text, path = b"prompt\nok\n" + b"a" * 5_000_000, tmp_path / name
    if "txt" not in name:
        text = text.replace(b"ok", b'{"prompt": "ok"}').replace(b"prompt\n{", b"{") if "jsonl" in name else text
    pack = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd}.get(path.suffix, lambda data: data)
    path.write_bytes(pack(text))
    number = 2 if "jsonl" in name else 3
    message = refusal(path, max_text=1_000_000, max_expansion=1e6)
    assert message == f"{path}, line {number}: is longer than 1000000 characters; allowed: that many, or a higher data.max_text"


def zstd(data: bytes) -> bytes:
    packed: bytes = pa.compress(data, codec="zstd", asbytes=True)
    return packed


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zstd)]
)
def test_archives_that_unfold_to_very_much_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    line = b"a red circle on a blue background, seen from above, at noon, in the style of nobody in particular\n"
    path = tmp_path / f"a.txt{suffix}"
    monkeypatch.setattr(sources, "FREE_EXPANSION", 1 << 20)
    path.write_bytes(pack(line * 20_000))
    assert refusal(path) == f"{path}: unfolds to more than 200 times its size; allowed: that much, or a higher data.max_expansion"
    assert plan_of(path, max_expansion=1e6).rows == 20_000


def test_a_zip_that_unfolds_to_very_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "a.txt.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", "a red circle on a blue background\n" * 60_000)
    monkeypatch.setattr(sources, "FREE_EXPANSION", 1 << 20)
    assert "unfolds to more than 200 times its size" in refusal(tmp_path / "a.txt.zip")


def test_rows_are_counted_before_and_while_they_are_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["p"] * 11}), tmp_path / "a.parquet")
    assert refusal(tmp_path / "a.parquet", max_rows=10) == f"{tmp_path}/a.parquet: has 11 rows; allowed: 10 (data.max_rows)"
    (tmp_path / "b.txt").write_text("p\n" * 11)
    assert refusal(tmp_path / "b.txt", max_rows=10) == f"{tmp_path}/b.txt: brings the rows to more than 10; see data.max_rows"
    assert both(tmp_path / "a.parquet", tmp_path / "b.txt", max_rows=22).rows == 22


def test_row_groups_have_a_bound(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": [f"prompt {row}" for row in range(1000)]}), tmp_path / "a.parquet")
    message = refusal(tmp_path / "a.parquet", max_row_group=5000)
    assert message.startswith(f"{tmp_path}/a.parquet: row group 0 has ") and "data.max_row_group" in message


@pytest.mark.parametrize("column", ["prompt", "note", "tags"])
def test_few_bytes_of_parquet_that_are_many_long_texts_take_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str
) -> None:
    """A dictionary holds a text once, however many rows refer to it."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 2_000, pa.int32()), ["x" * 100_000])
    columns: dict[str, Any] = {"prompt": ["p"] * 2_000, "note": text, "tags": pa.ListArray.from_arrays(range(2_001), text)}
    columns["prompt"] = text if column == "prompt" else columns["prompt"]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({name: columns[name] for name in {"prompt", column}}), path)
    assert path.stat().st_size < 300_000
    data, most = DataConfig(str(path)), 4 << 20
    monkeypatch.setattr(arrow_formats, "BATCH_BYTES", most)
    (source,) = find_sources(data.sources)
    sizes = [sum(values.nbytes for values in piece.columns.values()) for piece in arrow_formats.read_parquet(source, data)]
    assert max(sizes) <= 2 * most and sum(sizes) >= 200e6


def test_a_text_of_parquet_has_a_bound(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["p", "q" * 1001]}), tmp_path / "a.parquet")
    message = refusal(tmp_path / "a.parquet", max_text=1000)
    assert message == f"{tmp_path}/a.parquet, row 2: 'prompt' has 1001 bytes; allowed: 1000, or a higher data.max_text"


def test_a_binary_value_of_parquet_has_a_bound(tmp_path: Path) -> None:
    table = pa.table({"prompt": ["p", "q"], "image": pa.array([b"", b"q" * 1001], pa.binary())})
    pq.write_table(table, tmp_path / "a.parquet")
    assert "row 2: 'image' has 1001 bytes; allowed: 1000" in refusal(tmp_path / "a.parquet", max_text=1000)


def test_values_beyond_the_bound_are_refused_by_the_footer_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", None)
    values = pa.array([b"q" * 30_000_000], pa.binary())
    pq.write_table(pa.table({"prompt": ["p"], "image": values}), tmp_path / "a.parquet", compression="zstd")
    message = refusal(tmp_path / "a.parquet")
    assert "a.parquet: image has 300" in message and "in 1 values; allowed: 16777216 bytes a value" in message


def test_short_texts_at_the_bound_are_not_beyond_it_by_their_footer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_formats, "BUFFER_BYTES", 64)
    pq.write_table(pa.table({"prompt": ["abc"] * 1000}), tmp_path / "a.parquet", use_dictionary=False)
    assert len(both(tmp_path / "a.parquet", max_text=3).shard(0).samples) == 1000


def test_an_archive_that_unfolds_to_very_much_is_refused_before_its_lines_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_formats, "_lines", None)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a\n" * (16 << 20), 1))
    assert "unfolds to more than 200 times its size" in refusal(tmp_path / "a.txt.gz")


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


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.jsonl.gz"])
def test_files_of_unknown_size_are_read(tmp_path: Path, site: str, name: str) -> None:
    rows = [{"prompt": f"p {row}", "n": row} for row in range(5_000)]
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name, row_group_size=1000)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    plan = both(f"{site}/{name}", size=10_000)
    assert [(sample.prompt, sample.columns) for sample in plan.shard(0).samples] == [(r["prompt"], {"n": r["n"]}) for r in rows]
