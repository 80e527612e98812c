"""The plan depends on the configuration alone: keys, seeds, shards, batches and its hash."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybridiff.config import DataConfig, SamplingConfig
from hybridiff.prompts.plan import Plan, Shard, make_plan
from hybridiff.prompts.rows import Sample, given_seed, image_seed
from tests.prompts.planning import both


def plan_of(folder: Path, rows: list[dict[str, Any]], shard_size: int = 3, **sampling: Any) -> Plan:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return make_plan(DataConfig([str(path)]), SamplingConfig(**sampling), shard_size)


def all_samples(plan: Plan) -> list[Sample]:
    return [sample for index in range(plan.shards) for sample in plan.shard(index).samples]


def prompts(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"prompt {row}"} for row in range(count)]


def test_shards_are_consecutive_and_the_last_is_shorter(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, prompts(7))
    assert (plan.rows, plan.shards) == (7, 3)
    assert [[sample.prompt[-1] for sample in plan.shard(index).samples] for index in range(3)] == [
        ["0", "1", "2"],
        ["3", "4", "5"],
        ["6"],
    ]
    assert plan.shard(2).index == 2
    assert [plan.shard_rows(index) for index in range(3)] == [3, 3, 1]


def test_images_per_prompt_may_cross_shards(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, prompts(3), shard_size=5, images_per_prompt=11)
    samples = all_samples(plan)
    assert (plan.rows, plan.shards, len(samples)) == (33, 7, 33)
    assert [sample.key for sample in samples[9:13]] == [
        f"rows-{key}" for key in ("00000000-09", "00000000-10", "00000001-00", "00000001-01")
    ]
    assert [sample.prompt[-1] for sample in samples[9:13]] == ["0", "0", "1", "1"]
    assert len({sample.seed for sample in samples}) == 33


def test_seeds_depend_on_job_seed_key_and_index_only(tmp_path: Path) -> None:
    samples = all_samples(plan_of(tmp_path, prompts(7), shard_size=2, seed=5))
    assert samples == all_samples(plan_of(tmp_path, prompts(7), shard_size=7, seed=5))
    assert [sample.seed for sample in samples] == [image_seed(5, sample.key, 0) for sample in samples]
    more = all_samples(plan_of(tmp_path, prompts(7), seed=5, images_per_prompt=2))
    assert [sample.seed for sample in more[::2]] == [sample.seed for sample in samples]


def test_seed_values_never_change() -> None:
    assert [image_seed(0, "a", 0), image_seed(1, "a", 0), image_seed(0, "ü", 1)] == [
        7588792172602473380,
        4539118116466139038,
        983611561786555673,
    ]
    assert all(0 <= image_seed(2**63 - 1, str(key), key) < 2**63 for key in range(100))


def test_a_rows_own_seed_counts_up_and_wraps(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": "p", "seed": 2**63 - 1}, {"prompt": "q", "seed": None}]
    samples = all_samples(plan_of(tmp_path, rows, images_per_prompt=2))
    assert [sample.seed for sample in samples[:2]] == [2**63 - 1, 0] == [given_seed(2**63 - 1, image) for image in range(2)]
    assert samples[3].seed == image_seed(0, "rows-00000001", 1)


def test_negative_prompts_fill_what_is_null(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": "p", "negative_prompt": given} for given in (None, "", "own")]
    assert [sample.negative_prompt for sample in all_samples(plan_of(tmp_path, rows))] == [None, "", "own"]
    assert [s.negative_prompt for s in all_samples(plan_of(tmp_path, rows, negative_prompt="all"))] == ["all", "", "own"]


@pytest.mark.parametrize(("size", "expected"), [(1, "n n p p p n n n"), (2, "nn pp p nn n"), (9, "nn ppp nnn")])
def test_batches_never_mix_negative_prompts(size: int, expected: str) -> None:
    kinds = {"n": None, "p": "blurred"}
    shard = Shard(0, tuple(Sample(kind, "", kinds[kind], 0, {}) for kind in "nnpppnnn"))
    assert " ".join("".join(sample.key for sample in batch) for batch in shard.batches(size)) == expected


def test_files_of_one_name_get_their_position(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("My Cats!.txt", "my-cats.csv", "käse.txt", "日本.txt")]
    for path in paths:
        path.write_text("prompt\np" if path.suffix == ".csv" else "p")
    plan = make_plan(DataConfig([str(path) for path in paths]), SamplingConfig(), 10)
    slugs = ["my-cats-0", "my-cats-1", "k-se", "prompts"]
    assert [sample.key for sample in all_samples(plan)] == [f"{slug}-00000000" for slug in slugs]


BASE: dict[str, Any] = {"prompt": "p", "key": "k", "negative_prompt": "n", "seed": 1, "mine": 1}


def test_content_is_that_of_the_rows_not_of_the_shards(tmp_path: Path) -> None:
    rows = [BASE, {**BASE, "key": "l"}]
    assert plan_of(tmp_path, rows, shard_size=1).content == plan_of(tmp_path, rows, shard_size=9).content
    assert plan_of(tmp_path, rows).content != plan_of(tmp_path, rows[::-1]).content


@pytest.mark.parametrize(
    "change", [{"prompt": "q"}, {"key": "l"}, {"negative_prompt": ""}, {"seed": 2}, {"mine": 2}, {"mine": "1"}, {"new": 1}]
)
def test_content_changes_with_any_field(tmp_path: Path, change: dict[str, Any]) -> None:
    content = plan_of(tmp_path, [BASE]).content
    assert len(content) == 64
    assert plan_of(tmp_path, [BASE | change]).content != content


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array([1, 2]), pa.array(["1", "2"])),
        (pa.array([1, 2], pa.int32()), pa.array([1, 2], pa.int64())),
        (pa.array([0.5, 1], pa.float32()), pa.array([0.5, 1], pa.float64())),
        (pa.array([None, None], pa.int64()), pa.array([None, None], pa.string())),
        (pa.array(["a", "b"]), pa.array(["a", "b"], pa.large_string())),
        (pa.array([b"a", b"b"]), pa.array(["b'a'", "b'b'"])),
        (pa.array([[1], []], pa.list_(pa.int8())), pa.array([[1], []], pa.list_(pa.int16()))),
    ],
    ids=lambda column: str(column.type),
)
def test_content_changes_with_the_type_of_a_column_whose_values_read_alike(
    tmp_path: Path, one: pa.Array, other: pa.Array
) -> None:
    contents = []
    for column in (one, other, one):
        pq.write_table(pa.table({"prompt": ["p", "q"], "mine": column}), tmp_path / "a.parquet")
        plan = both(tmp_path / "a.parquet", size=1)
        assert plan.user_schema == pa.schema([("mine", column.type)])
        contents.append(plan.content)
    assert contents[0] == contents[2] != contents[1]


def test_content_is_free_of_what_sampling_adds(tmp_path: Path) -> None:
    assert plan_of(tmp_path, prompts(1), seed=1).content == plan_of(tmp_path, prompts(1), seed=2).content
    assert plan_of(tmp_path, prompts(1), images_per_prompt=2).content == plan_of(tmp_path, prompts(1)).content
