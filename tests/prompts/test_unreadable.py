"""Rows of Parquet tables that can't be read: each fails alone, unless it is its key that can't."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.prompts.planning import both, refusal, samples_of


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
    samples = samples_of(both(tmp_path / "a.parquet"))
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
    samples = samples_of(both(tmp_path / "a.parquet", images=2))
    expected = f"'{name}' can't be read: it is not UTF-8 text, from its byte 0 on"
    assert [sample.error for sample in samples] == [None, None, expected, expected, None, None]
    values = [sample.columns.get(name, sample.negative_prompt) for sample in samples[::2]]
    assert values == [None, "\ufffd", "fine"]


def test_so_does_one_with_other_values_that_cannot_be_had(tmp_path: Path) -> None:
    years = pa.array([0, 2**59, None], pa.timestamp("us"))
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 1, 3], pa.int32()), with_bytes([b"a", b"b", b"\xff"]))
    pq.write_table(pa.table({"prompt": ["p", "q", "r"], "year": years, "tags": lists}), tmp_path / "a.parquet")
    samples = samples_of(both(tmp_path / "a.parquet"))
    assert [list(sample.columns.values())[1] for sample in samples] == [["a"], [], None]
    assert samples[0].error is None and samples[0].columns["year"].year == 1970
    assert str(samples[1].error).startswith("'year' can't be read: ") and samples[1].columns["year"] is None
    assert str(samples[2].error).startswith("'tags' can't be read: ")


def test_so_does_one_with_text_in_a_map_that_is_not(tmp_path: Path) -> None:
    names = with_bytes([b"a", b"\xff"])
    maps = pa.MapArray.from_arrays(pa.array([0, 1, 2], pa.int32()), names, pa.array([1, 2]))
    pq.write_table(pa.table({"prompt": ["p", "q"], "map": maps}), tmp_path / "a.parquet")
    samples = samples_of(both(tmp_path / "a.parquet"))
    assert [sample.columns["map"] for sample in samples] == ['[["a", 1]]', None]
    assert samples[0].error is None and str(samples[1].error).startswith("'map' can't be read: ")


def test_keys_are_refused_where_they_are_not_utf8(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["p", "q"], "key": with_bytes([b"k", b"\xffk"])}), tmp_path / "a.parquet")
    message = refusal(tmp_path / "a.parquet")
    assert message == f"{tmp_path}/a.parquet, row 2: 'key' can't be read: it is not UTF-8 text, from its byte 0 on"


def test_null_prompts_are_refused_beside_text_that_is_not_utf8(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": with_bytes([b"\xff", None])}), tmp_path / "a.parquet")
    assert (
        refusal(tmp_path / "a.parquet")
        == f"{tmp_path}/a.parquet, row 2: prompt is None; allowed: text in Unicode, not null, or data.empty_prompts=allow"
    )
