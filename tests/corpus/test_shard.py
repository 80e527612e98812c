"""What a shard holds, and when."""

import dataclasses
import datetime
import decimal
import hashlib
import importlib.util
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import webdataset

from hybridiff.columns import metadata_schema
from hybridiff.config import DataConfig, SamplingConfig
from hybridiff.corpus import Corpus, Result, ShardWriter, verify, write_card
from hybridiff.corpus.reader import read_samples
from hybridiff.corpus.record import sealed
from hybridiff.errors import UsageError
from hybridiff.prompts.plan import make_plan
from hybridiff.prompts.rows import Sample
from tests.corpus.corpora import PNG, RUN_VALUES, USER_SCHEMA, files, make_corpus, record, result, write_shard

OWN = "key prompt negative_prompt seed status error file width height sha256 guidance_scale steps scheduler model"
COLUMNS = [
    *OWN.split(),
    "revision",
    "version",
    "dtype",
    "device",
    "group_size",
    "schedule",
    "schedule_options",
    "steps_full",
    "steps_half",
    "steps_skipped",
    "tau1",
    "tau2",
    "discrepancy",
    "prompt_truncated",
    "style",
    "weight",
]


@pytest.mark.parametrize("image_format", ["png", "jpg", "webp"])
def test_two_writes_give_the_same_bytes_but_for_the_timings(url: str, tmp_path: Path, image_format: str) -> None:
    one, two = Corpus(url), Corpus(str(tmp_path / "again"))
    assert write_shard(one, 3, image_format, wall_s=1.0) == write_shard(two, 3, image_format, wall_s=2.0)
    first, second = files(one), files(two)
    assert set(first) == {"images/00003.tar", "metadata/00003.parquet", "commits/00003.json", "stats/00003.json"}
    assert [name for name in sorted(first) if first[name] != second[name]] == ["stats/00003.json"]
    assert json.loads(first["stats/00003.json"]) == {"shard": 3, "versions": {}, "wall_s": 1.0}


def test_the_marker_counts_and_is_the_last_to_come(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    open_file = type(Corpus(url).fs).open

    def noted(self: Any, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if "w" in mode:
            order.append(path.rpartition("/")[2].split(".")[2])
        return open_file(self, path, mode, **kwargs)

    monkeypatch.setattr(type(Corpus(url).fs), "open", noted)
    marker = write_shard(Corpus(url), 0)
    assert order == ["tar", "parquet", "json", "json"]
    text = files(Corpus(url))["commits/00000.json"].decode()
    assert text == json.dumps(marker, sort_keys=True, indent=1) + "\n"
    assert {name: marker[name] for name in ("shard", "rows", "ok", "failed")} == {"shard": 0, "rows": 4, "ok": 3, "failed": 1}


def test_rows_are_complete_typed_and_in_order(url: str) -> None:
    corpus = Corpus(url)
    write_shard(corpus, 0)
    with corpus.fs.open(corpus.path("metadata/00000.parquet"), "rb") as handle:
        table = pq.read_table(handle)
    assert table.schema.names == COLUMNS
    assert table.schema.field("discrepancy").type == pa.list_(pa.float32())
    assert (table.schema.field("seed").type, table.schema.field("steps_half").type) == (pa.int64(), pa.int32())
    rows = table.to_pylist()
    assert [row["key"] for row in rows] == [result(number).sample.key for number in range(4)]
    good, bad = rows[0], rows[2]
    assert (good["status"], good["error"], good["width"], good["height"], good["seed"]) == ("ok", None, 16, 24, 2**62)
    assert (good["file"], good["model"], good["style"]) == ("images/00000.tar/ключ-0000.png", "shapes-xl", "ü")
    assert bad["status"] == "error" and bad["error"] == "ValueError: out of luck"
    assert [bad[name] for name in ("file", "width", "height", "sha256")] == [None] * 4


def test_the_tar_holds_image_prompt_and_row_of_what_succeeded(url: str) -> None:
    corpus = Corpus(url)
    write_shard(corpus, 0)
    with corpus.fs.open(corpus.path("images/00000.tar"), "rb") as handle:
        samples = dict(read_samples(handle))
    assert list(samples) == [result(number).sample.key for number in (0, 1, 3)]
    image = result(3).image
    assert image is not None
    assert samples["ключ-0003"]["png"] == PNG.encode(image)
    assert samples["ключ-0003"]["txt"].decode() == "an ä\n猫 3"
    row = json.loads(samples["ключ-0003"]["json"])
    assert list(row) == COLUMNS
    assert (row["discrepancy"], row["weight"], row["seed"], row["tau2"]) == ([0.5, None], None, 2**62 + 3, None)
    first = json.loads(samples["ключ-0000"]["json"])
    assert first.pop("null_columns") == ["negative_prompt", "error", "revision", "tau2", "weight"]
    assert list(first) == COLUMNS and (first["negative_prompt"], first["tau2"], first["weight"]) == ("", 0, 0.0)
    assert "猫" in samples["ключ-0003"]["json"].decode()


def test_an_encoded_image_is_written_as_it_is(url: str) -> None:
    corpus = Corpus(url)
    writer = ShardWriter(corpus, 0, RUN_VALUES, USER_SCHEMA, PNG)
    writer.write(result(0), b"encoded elsewhere")
    writer.commit({})
    with corpus.fs.open(corpus.path("images/00000.tar"), "rb") as handle:
        assert next(read_samples(handle))[1]["png"] == b"encoded elsewhere"


def test_nothing_is_visible_before_the_commit_or_after_a_discard(url: str) -> None:
    corpus = Corpus(url)
    writer = ShardWriter(corpus, 0, RUN_VALUES, USER_SCHEMA, PNG)
    writer.write(result(0))
    assert not corpus.fs.exists(corpus.path("images/00000.tar"))
    writer.discard()
    writer.discard()
    assert files(corpus) == {}


def test_a_commit_that_fails_half_way_is_no_commit(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    corpus = Corpus(url)
    monkeypatch.setattr("pyarrow.parquet.ParquetWriter.write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        write_shard(corpus, 0)
    monkeypatch.undo()
    assert [name for name in files(corpus) if not name.endswith(".tmp")] == [] and corpus.committed() == set()
    write_shard(corpus, 0)
    assert corpus.committed() == {0}


def test_keys_of_200_bytes_and_user_values_json_cannot_say(url: str) -> None:
    corpus = Corpus(url)
    schema = pa.schema([("when", pa.date32()), ("raw", pa.binary()), ("nested", pa.struct([("x", pa.float64())]))])
    columns = pa.table({"when": [0], "raw": [b"\xff"], "nested": [{"x": float("inf")}]}, schema=schema).to_pylist()[0]
    sample = Sample("k" * 200, "", "", 0, columns)
    writer = ShardWriter(corpus, 0, RUN_VALUES, schema, PNG)
    writer.write(Result(sample, np.zeros((8, 8, 3), np.uint8), None, False, 1, 0, 0, None, None, []))
    writer.commit({})
    with corpus.fs.open(corpus.path("images/00000.tar"), "rb") as handle:
        key, content = next(read_samples(handle))
    row = json.loads(content["json"])
    assert (key, row["when"], "raw" in row, row["nested"]) == ("k" * 200, "1970-01-01", False, '{"x": null}')


def test_a_users_column_may_not_hide_one_of_ours() -> None:
    with pytest.raises(UsageError, match="column 'width' of the prompt tables is reserved"):
        metadata_schema(pa.schema([("style", pa.string()), ("width", pa.int64())]))


def whole(corpus: Corpus, **given: Any) -> Corpus:
    """A corpus of one shard and a run record that says how it was written."""
    configuration = record().configuration
    output = configuration["output"] | {"sidecar": "json" if given.get("sidecar", True) else "none"}
    corpus.start_run(record(configuration=configuration | {"output": output}, plan={"rows": 150, "shards": 1, "content": ""}))
    writer = ShardWriter(corpus, 0, RUN_VALUES, USER_SCHEMA, PNG, **given)
    for number in range(150):
        writer.write(result(number, failed=number % 50 == 2))
    writer.commit({})
    return corpus


def test_images_inside_the_rows_as_hugging_face_has_them(url: str) -> None:
    corpus = whole(Corpus(url), embed_images=True)
    with corpus.fs.open(corpus.path("metadata/00000.parquet"), "rb") as handle:
        file = pq.ParquetFile(handle)
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [64, 64, 22]
        assert json.loads(file.schema_arrow.metadata[b"huggingface"]) == {"info": {"features": {"image": {"_type": "Image"}}}}
        assert file.schema_arrow.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        rows = file.read().to_pylist()
    with corpus.fs.open(corpus.path("images/00000.tar"), "rb") as handle:
        samples = dict(read_samples(handle))
    for row in rows:
        files = samples.get(row["key"])
        assert row["image"] == (files and {"bytes": files["png"], "path": f"{row['key']}.png"})
        assert files is None or b"bytes" not in files["json"]
    assert sum(row["image"] is None for row in rows) == 3
    assert verify(corpus).whole


def test_an_image_inside_the_rows_that_is_not_the_tars_is_found(tmp_path: Path) -> None:
    corpus = whole(Corpus(str(tmp_path)), embed_images=True)
    table = pq.read_table(tmp_path / "metadata/00000.parquet")
    rows = table.to_pylist()
    rows[1]["image"] = rows[0]["image"]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), tmp_path / "metadata/00000.parquet")
    data = (tmp_path / "metadata/00000.parquet").read_bytes()
    marker = corpus.read_marker(0)
    marker["files"]["metadata/00000.parquet"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    corpus.publish("commits/00000.json", json.dumps(marker).encode())
    assert verify(corpus).problems == [
        "metadata/00000.parquet: ключ-0001: the SHA-256 of the image in it is not its row's",
    ]


def test_the_tar_is_the_one_that_webdataset_writes(tmp_path: Path) -> None:
    corpus = Corpus(str(tmp_path / "corpus"))
    write_shard(corpus, 0)
    ours = (tmp_path / "corpus" / "images" / "00000.tar").read_bytes()
    theirs = io.BytesIO()
    tar = webdataset.TarWriter(theirs, encoder=False, mtime=0)
    for key, members in read_samples(io.BytesIO(ours)):
        tar.write({"__key__": key, **members})
    tar.close()
    assert ours == theirs.getvalue()


def test_without_a_sidecar_the_tar_holds_image_and_prompt(url: str) -> None:
    corpus = whole(Corpus(url), sidecar=False)
    with corpus.fs.open(corpus.path("images/00000.tar"), "rb") as handle:
        assert {tuple(sorted(content)) for _, content in read_samples(handle)} == {("png", "txt")}
    assert verify(corpus).whole
    document = json.loads(corpus.read("run.json"))
    document["configuration"]["output"]["sidecar"] = "json"
    corpus.publish("run.json", json.dumps(sealed(document)).encode())
    assert "holds ['png', 'txt'], not ['json', 'png', 'txt']" in verify(corpus).problems[0]
    assert write_card(corpus) and '["json"]' in corpus.read("README.md").decode()
    document["configuration"]["output"]["sidecar"] = "none"
    corpus.publish("run.json", json.dumps(sealed(document)).encode())
    assert write_card(corpus) and '["json"]' not in corpus.read("README.md").decode()


def test_a_discarded_shard_with_images_in_its_rows_leaves_nothing(url: str) -> None:
    corpus = Corpus(url)
    writer = ShardWriter(corpus, 0, RUN_VALUES, USER_SCHEMA, PNG, embed_images=True)
    for number in range(70):
        writer.write(result(number))
    writer.discard()
    del writer
    assert files(corpus) == {}


def test_webdataset_reads_the_images(tmp_path: Path) -> None:
    make_corpus(str(tmp_path))
    reader = webdataset.WebDataset(str(tmp_path / "images" / "{00000..00002}.tar"), shardshuffle=False).decode("rgb8")
    samples = list(reader)
    assert [sample["__key__"] for sample in samples] == [result(n).sample.key for n in range(12) if n % 4 != 2]
    assert np.array_equal(samples[0]["png"], result(0).image)  # type: ignore[arg-type]
    assert (samples[0]["txt"], samples[0]["json"]["steps"]) == ("an ä\n猫 0", 4)


def test_pyarrow_reads_the_rows(url: str) -> None:
    corpus = make_corpus(url)
    rows = pyarrow.dataset.dataset(corpus.path("metadata"), filesystem=corpus.fs, format="parquet")
    assert rows.schema.names == COLUMNS
    assert rows.to_table(columns=["key"])["key"].to_pylist() == [result(n).sample.key for n in range(12)]
    assert rows.count_rows(filter=pyarrow.dataset.field("status") == "ok") == 9


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Hugging Face's library, which is to keep what it caches to itself."""
    if importlib.util.find_spec("datasets") is None and not os.environ.get("CI"):
        pytest.skip("needs datasets, of the dev extra")
    for name in ("HF_HOME", "HF_DATASETS_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    import datasets

    return datasets


def test_datasets_reads_rows_and_images(tmp_path: Path, datasets: Any) -> None:
    corpus = make_corpus(str(tmp_path / "corpus"))
    assert write_card(corpus)
    rows = datasets.load_dataset(corpus.root, split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["key"][:] == [result(n).sample.key for n in range(12)]
    assert rows["discrepancy"][0][0] == 0.5 and rows["style"][:] == ["ü"] * 12
    images = datasets.load_dataset("webdataset", data_files=f"{corpus.root}/images/*.tar", split="train", streaming=True)
    assert [sample["__key__"] for sample in images] == [result(n).sample.key for n in range(12) if n % 4 != 2]


USER_TYPES: dict[str, tuple[pa.DataType, Any]] = {
    "score": (pa.float64(), 0.5),
    "count": (pa.int64(), 7),
    "hash": (pa.uint64(), 2**64 - 1),
    "good": (pa.bool_(), True),
    "style": (pa.string(), "ü"),
    "day": (pa.date32(), datetime.date(2026, 1, 1)),
    "price": (pa.decimal128(5, 2), decimal.Decimal("1.50")),
    "nested": (pa.struct([("x", pa.float64())]), {"x": 1.5}),
    "tags": (pa.list_(pa.string()), ["a"]),
    "pairs": (pa.map_(pa.string(), pa.int64()), [("a", 1)]),
    "kind": (pa.dictionary(pa.int8(), pa.string()), "photo"),
    "nothing": (pa.null(), None),
    "raw": (pa.binary(), b"\xff"),
    "photo": (pa.struct([("bytes", pa.binary()), ("path", pa.string())]), {"bytes": b"\xff", "path": "a.png"}),
}


@pytest.mark.parametrize("nulls", [0, 1, 5, 7])
def test_datasets_reads_the_json_whatever_is_null_in_the_first_rows(tmp_path: Path, datasets: Any, nulls: int) -> None:
    """Streaming or not, with the types of all columns; binary ones are left out."""
    corpus = Corpus(str(tmp_path / "corpus"))
    schema = pa.schema([(name, kind) for name, (kind, _) in USER_TYPES.items()])
    writer = ShardWriter(corpus, 0, RUN_VALUES, schema, PNG)
    for number in range(8):
        values = {name: None if number < nulls else value for name, (_, value) in USER_TYPES.items()}
        one, sample = result(number), dataclasses.replace(result(number).sample, columns=values)
        writer.write(dataclasses.replace(one, sample=sample, tau1=None if number < nulls else 3))
    writer.commit({})
    expected = {"score": 0.5, "count": 7, "good": True, "style": "ü", "day": "2026-01-01", "price": "1.50", "kind": "photo"}
    expected |= {
        "hash": str(2**64 - 1),
        "nested": '{"x": 1.5}',
        "tags": '["a"]',
        "pairs": '[["a", 1]]',
        "nothing": None,
        "tau1": 3,
    }
    for streaming in (False, True):
        options = {"data_files": f"{corpus.root}/images/*.tar", "split": "train", "cache_dir": str(tmp_path / f"cache{nulls}")}
        rows = [sample["json"] for sample in datasets.load_dataset("webdataset", streaming=streaming, **options)]
        assert len(rows) == 8 and {name: rows[7][name] for name in expected} == expected
        assert not {"raw", "photo"} & rows[7].keys() and all(expected.keys() <= row.keys() for row in rows)
        assert [row["score"] for row in rows[1:]] == [None if number < nulls else 0.5 for number in range(1, 8)]
        assert ("score" in (rows[0]["null_columns"] or [])) == (nulls > 0)


def test_datasets_has_the_types_of_columns_of_any_prompt_table(tmp_path: Path, datasets: Any) -> None:
    kinds = {
        "map": pa.map_(pa.string(), pa.int8()),
        "view": pa.list_view(pa.int8()),
        "day": pa.date32(),
        "wide": pa.decimal256(50),
    }
    kinds |= {"maps": pa.list_(kinds["map"]), "span": pa.duration("us"), "half": pa.float16(), "mark": pa.binary(2)}
    table = pa.table({"prompt": ["p"]} | {name: pa.nulls(1, kind) for name, kind in kinds.items()})
    pq.write_table(table, tmp_path / "a.parquet")
    for held_bytes in (0, 1 << 20):
        plan = make_plan(DataConfig([str(tmp_path / "a.parquet")]), SamplingConfig(), 1, held_bytes=held_bytes)
        assert list(datasets.Features.from_arrow_schema(plan.user_schema)) == list(kinds)


def test_datasets_reads_the_images_inside_the_rows(tmp_path: Path, datasets: Any) -> None:
    corpus = whole(Corpus(str(tmp_path / "corpus")), embed_images=True)
    assert write_card(corpus)
    rows = datasets.load_dataset(corpus.root, split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(rows.features["image"], datasets.Image) and len(rows) == 150
    for number in (0, 2, 149):
        expected = None if number % 50 == 2 else result(number).image
        found = rows[number]["image"]
        assert (found is None) == (expected is None)
        assert expected is None or np.array_equal(np.asarray(found), expected)
