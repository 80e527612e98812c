"""The benchmark of a corpus: conclusions, tables, and that secrets are hidden."""

import json

import numpy as np
import pytest

from hybridiff.images import Encoder
from jobs.benchmark.config import CorpusConfig
from jobs.benchmark.corpus.report import CorpusReport
from jobs.benchmark.corpus.synthetic import photograph
from jobs.benchmark.corpus.throughput import ENCODER, PACKING, STORAGE, VerifyRow, WritingRow, WritingTimes, make_row
from jobs.benchmark.corpus.whole_job import JobRow

JOB = JobRow("s3://bucket/a", "png", 64, 1.96, 2.0, 0.98, 0.99, 0.25, [0.97, 0.98, 0.99])


def row(*times: WritingTimes) -> WritingRow:
    return make_row(("a", "jpg", 10), 100.0, 20.0, 2, list(times))


def test_the_encoder_is_named_where_it_is_slowest() -> None:
    found = row(WritingTimes(written=10.0, stored=1.1, put=1.0, unsynced=0.5, encoded=4.0))
    assert (found.encode_mb_s, found.written_mb_s, found.put_mb_s, found.unsynced_put_mb_s) == (5.0, 10.0, 100.0, 200.0)
    assert (found.ratio, found.bound_by) == (0.1, ENCODER)
    assert found.of_bound == pytest.approx(1.0)  # two encoders at 5 MB/s


def test_the_storage_is_named_where_it_is_slowest() -> None:
    found = row(WritingTimes(written=1.25, stored=1.1, put=1.0, unsynced=1.0, encoded=0.1))
    assert (found.ratio, found.bound_by, found.of_bound) == (0.8, STORAGE, 0.8)


def test_packing_is_named_where_it_is_much_slower_than_put() -> None:
    found = row(WritingTimes(written=2.0, stored=2.0, put=1.0, unsynced=1.0, encoded=0.1))
    assert (found.stored_ratio, found.bound_by, found.of_bound) == (0.5, PACKING, 1.0)


def test_ratios_are_medians_over_rounds() -> None:
    rounds = [WritingTimes(2.0, 1.0, put, put, 0.1) for put in (1.0, 1.6, 1.8)]
    assert row(*rounds).ratio == 0.8


def test_the_tables_show_targets_and_leave_unknown_cells_empty() -> None:
    writing = row(WritingTimes(10.0, 1.1, 1.0, 0.5, 4.0))
    verify = VerifyRow("s3://bucket/a", "png", 4, 256.0, 2, 300.0, None, None, None)
    lines = CorpusReport(CorpusConfig(), 2, 2, [JOB], [writing], [verify]).lines()
    assert [line.count("|") for line in lines if line.startswith("| url")] == [9, 12, 8]
    assert "ratio (target 0.97)" in lines[1] and "ratio (target 0.8)" in lines[6]
    assert "0.97 to 0.99" in lines[3] and "the encoder on 2 cores" in lines[8]
    assert lines[13].endswith("|    300 |           |       |             |")


def test_a_part_left_out_has_no_table() -> None:
    assert CorpusReport(CorpusConfig(), 1, 1).lines() == []


def test_the_record_is_json_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKET_TOKEN", "hunter2hunter2")
    config = CorpusConfig(urls=["s3://bucket/hunter2hunter2"])
    record = json.dumps(CorpusReport(config, 2, 2, [JOB]).record())
    assert "hunter2" not in record
    assert json.loads(record)["jobs"][0]["ratio"] == 0.98 and json.loads(record)["versions"]["torch"]


def test_photographs_compress_as_photographs_do() -> None:
    image = photograph(3, 256)
    assert np.array_equal(image, photograph(3, 256)) and not np.array_equal(image, photograph(4, 256))
    assert 1.0 < len(Encoder().encode(image)) / 256**2 < 2.5
    assert 0.2 < len(Encoder("jpg").encode(image)) / 256**2 < 1.0
