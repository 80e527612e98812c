"""Which rows are compared: what can't be distinguished is refused."""

import dataclasses
from pathlib import Path

import pyarrow as pa
import pytest

from hybridiff.errors import UsageError
from hybridiff.evaluate.matching import match_rows, read_rows
from hybridiff.evaluate.request import Join
from tests.evaluate.evaluations import make_images, write_corpus


@pytest.mark.parametrize("join", ["key", "prompt"])
@pytest.mark.parametrize("repeats_in_reference", [False, True])
def test_a_value_that_joins_occurs_once(join: Join, repeats_in_reference: bool, tmp_path: Path) -> None:
    rows = read_rows(str(write_corpus(tmp_path / "corpus", make_images(4)).url))
    twice = dataclasses.replace(rows, table=pa.concat_tables([rows.table, rows.table.slice(0, 1)]))
    with pytest.raises(UsageError, match=f"^--join is '{join}', and .* has 1 row with the {join} of another; allowed: "):
        match_rows(*((rows, twice) if repeats_in_reference else (twice, rows)), join)
    assert match_rows(rows, rows, join).counts["pairs"] == 4
