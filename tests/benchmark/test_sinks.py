"""The benchmark of the sinks: what it concludes, what it shows, and that it hides secrets."""

import json

import numpy as np
import pytest

from hybridiff.images import Encoder
from jobs.benchmark.sinks.checking import CheckingRow
from jobs.benchmark.sinks.config import SinksConfig
from jobs.benchmark.sinks.photographs import photograph
from jobs.benchmark.sinks.report import SinksReport
from jobs.benchmark.sinks.whole_job import JobRow
from jobs.benchmark.sinks.writing import ENCODER, PACKING, STORAGE, Taken, WritingRow, make_row

JOB = JobRow("s3://bucket/a", "png", 64, 1.96, 2.0, 0.98, 0.99, 0.25, [0.97, 0.98, 0.99])


def row(*taken: Taken) -> WritingRow:
    return make_row(("a", "jpg", 10), 100.0, 20.0, 2, list(taken))


def test_an_encoder_that_takes_longest_is_named() -> None:
    found = row(Taken(written=10.0, stored=1.1, put=1.0, unsynced=0.5, encoded=4.0))
    assert (found.encode_mb_s, found.written_mb_s, found.put_mb_s, found.unsynced_put_mb_s) == (5.0, 10.0, 100.0, 200.0)
    assert (found.ratio, found.bound_by) == (0.1, ENCODER)
    assert found.of_bound == pytest.approx(1.0)  # two encoders at 5 MB/s


def test_a_storage_that_takes_longest_is_named() -> None:
    found = row(Taken(written=1.25, stored=1.1, put=1.0, unsynced=1.0, encoded=0.1))
    assert (found.ratio, found.bound_by, found.of_bound) == (0.8, STORAGE, 0.8)


def test_packing_is_named_where_it_takes_much_longer_than_put() -> None:
    found = row(Taken(written=2.0, stored=2.0, put=1.0, unsynced=1.0, encoded=0.1))
    assert (found.stored_ratio, found.bound_by, found.of_bound) == (0.5, PACKING, 1.0)


def test_ratios_are_medians_of_rounds_of_their_own() -> None:
    rounds = [Taken(2.0, 1.0, put, put, 0.1) for put in (1.0, 1.6, 1.8)]
    assert row(*rounds).ratio == 0.8


def test_the_tables_show_bars_and_what_is_missing() -> None:
    writing = row(Taken(10.0, 1.1, 1.0, 0.5, 4.0))
    checking = CheckingRow("s3://bucket/a", "png", 4, 256.0, 2, 300.0, None, None)
    lines = SinksReport(SinksConfig(), 2, 2, [JOB], [writing], [checking]).lines()
    assert [line.count("|") for line in lines if line.startswith("| url")] == [9, 12, 7]
    assert "ratio (bar 0.97)" in lines[1] and "ratio (bar 0.8)" in lines[6]
    assert "0.97 to 0.99" in lines[3] and "the encoder on 2 cores" in lines[8]
    assert lines[13].endswith("|    300 |           |       |")


def test_a_part_left_out_has_no_table() -> None:
    assert SinksReport(SinksConfig(), 1, 1).lines() == []


def test_the_record_is_json_without_secrets() -> None:
    config = SinksConfig(urls=["s3://key:hunter2hunter2@bucket/a"])
    record = json.dumps(SinksReport(config, 2, 2, [JOB]).record())
    assert "hunter2" not in record
    assert json.loads(record)["jobs"][0]["ratio"] == 0.98 and json.loads(record)["versions"]["torch"]


def test_photographs_compress_as_photographs_do() -> None:
    picture = photograph(3, 256)
    assert np.array_equal(picture, photograph(3, 256)) and not np.array_equal(picture, photograph(4, 256))
    assert 1.0 < len(Encoder().encode(picture)) / 256**2 < 2.5
    assert 0.2 < len(Encoder("jpg").encode(picture)) / 256**2 < 1.0
