"""Selecting rows of a scored corpus: what is in the new one, what is left out, and that it goes on after a kill."""

import io
import json
import os
import re
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hybridiff.corpus import Corpus, verify
from hybridiff.corpus.layout import LEASES
from hybridiff.errors import StorageError, UsageError
from hybridiff.export.score_files import find_scores
from hybridiff.export.select_corpus import Copied, select
from hybridiff.export.select_options import Caption, SelectOptions, Split, parse_splits
from hybridiff.export.selection import Selection, key_number, plan_selection, read_whole
from hybridiff.storage.folder import Folder
from hybridiff.storage.lease import Leases
from hybridiff.storage.owner import Owner
from tests.corpus.corpora import files, make_corpus
from tests.export.scored import FAILED_ROWS, rows, score, scored_corpus
from tests.optional import needs

WHERE = "clip > 0.25 and nsfw < 0.1 and not duplicate"


def plan(source: Corpus, **options: Any) -> Selection:
    return plan_selection(read_whole(source), SelectOptions(**options), find_scores(source, "evaluation"))


def run(source: Corpus, new: Path | str, owner: Owner | None = None, **options: Any) -> Copied:
    selection = plan(source, **options)
    with selection.scored:
        return select(selection, str(new), owner or Owner.here())


def images(corpus: Corpus) -> dict[str, dict[str, bytes]]:
    """The files of each sample by extension, by key."""
    found: dict[str, dict[str, bytes]] = {}
    for index in sorted(corpus.committed()):
        with tarfile.open(fileobj=io.BytesIO(corpus.read(f"images/{index:05d}.tar"))) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                found.setdefault(key, {})[extension] = file.read()
    return found


def contents(folder: Path) -> dict[str, bytes]:
    """All files but those that differ from run to run, or hold the directory's name."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if not re.search(r"stats/|leases/|run\.json", name)}


def test_the_rows_that_meet_the_condition_are_copied_byte_for_byte(tmp_path: Path) -> None:
    source = scored_corpus(tmp_path / "source")
    before = files(source)
    assert run(source, tmp_path / "new", where=WHERE, shard_size=2) == Copied(2, 0)
    new = Corpus(str(tmp_path / "new"))
    assert [row["clip"] for row in rows(new)] == [7 / 12, 8 / 12, 9 / 12, 11 / 12]
    old = {row["key"]: row for row in rows(source)}
    for row in rows(new):
        differing = {name for name in old[row["key"]] if str(row[name]) != str(old[row["key"]][name])}
        assert differing <= {"file"} and row["status"] == "ok"
    ours, theirs = images(new), images(source)
    assert len(ours) == 4
    for key, sample in ours.items():
        assert sample["png"] == theirs[key]["png"] and sample["txt"] == theirs[key]["txt"]
        assert json.loads(sample["json"])["nsfw"] == pytest.approx(next(r["nsfw"] for r in rows(new) if r["key"] == key))
    report = verify(new)
    assert report.whole and not report.problems and (report.shards, report.rows, report.ok) == (2, 4, 4)
    assert files(source) == before, "the source is only read"


def test_the_card_counts_what_was_left_out_by_reason(tmp_path: Path) -> None:
    source = scored_corpus(tmp_path / "source")
    where = "clip > 0.25 and (nsfw < 0.1 or prompt like 'a|b') and not duplicate"
    run(source, tmp_path / "new", where=where, caption=Caption("{prompt} |\n{style}"))
    card = (tmp_path / "new" / "README.md").read_text()
    for line in (
        "| the image could not be generated | 3 | 3 |",
        "| clip > 0.25 | 3 | 3 |",
        "| clip > 0.25: no value | 1 | 1 |",
        "| (nsfw < 0.1) OR (prompt ~~ 'a\\|b') | 0 | 2 |",
        "| NOT duplicate | 1 | 1 |",
        "| together | 8 | |",
        "| `caption` | string | text of the image: `{prompt} \\| {style}` |",
        "| `clip` | double | score of the evaluation `scores.clip` |",
    ):
        assert line in card, line
    assert "from the 12 rows" in card and "4 (0 of 4 requested failed)" in card


def test_reasons_add_up_to_what_is_left_out(tmp_path: Path) -> None:
    selection = plan(scored_corpus(tmp_path / "source"), where=WHERE)
    with selection.scored:
        assert sum(reason.rows for reason in selection.reasons) == 12 - selection.rows() == 8


def test_without_a_condition_every_image_is_selected(tmp_path: Path) -> None:
    source = make_corpus(str(tmp_path / "source"))
    run(source, tmp_path / "new")
    new = Corpus(str(tmp_path / "new"))
    assert len(rows(new)) == 9
    assert images(new).keys() == images(source).keys() and verify(new).whole


def test_splits_are_corpora_that_share_the_keys_by_their_hash_alone(tmp_path: Path) -> None:
    source = scored_corpus(tmp_path / "source")
    splits = parse_splits("train:0.7,val:0.3")
    run(source, tmp_path / "all", splits=splits, shard_size=4)
    found = {name: {row["key"] for row in rows(Corpus(str(tmp_path / "all" / name)))} for name in ("train", "val")}
    assert found["train"] and found["val"]
    assert found["train"] | found["val"] == images(source).keys() and not found["train"] & found["val"]
    assert found["train"] == {key for key in images(source) if key_number(key) < 0.7}
    assert all(verify(Corpus(str(tmp_path / "all" / name))).whole for name in found)
    run(source, tmp_path / "some", splits=splits, where="nsfw < 0.08")
    assert {row["key"] for row in rows(Corpus(str(tmp_path / "some" / "val")))} <= found["val"]


def test_a_split_that_gets_no_row_is_an_empty_corpus(tmp_path: Path) -> None:
    source = scored_corpus(tmp_path / "source")
    run(source, tmp_path / "new", splits=(Split("train", 0.999999), Split("val", 0.000001)))
    assert [len(rows(Corpus(str(tmp_path / "new" / name)))) for name in ("train", "val")] == [9, 0]
    assert verify(Corpus(str(tmp_path / "new" / "val"))).whole
    assert (
        "split: train" in (tmp_path / "new" / "README.md").read_text()
        and "split: val" not in (tmp_path / "new" / "README.md").read_text()
    )


def test_datasets_loads_a_selection_and_its_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = needs("datasets", "dev")
    source = scored_corpus(tmp_path / "source")
    run(source, tmp_path / "new", where="clip > 0.25")
    run(source, tmp_path / "parts", splits=parse_splits("train:0.7,val:0.3"))
    cache = str(tmp_path / "cache")
    loaded = datasets.load_dataset(str(tmp_path / "new"), split="train", cache_dir=cache)
    assert loaded["key"] == [row["key"] for row in rows(Corpus(str(tmp_path / "new")))]
    parts = datasets.load_dataset(str(tmp_path / "parts"), cache_dir=cache)
    assert set(parts) == {"train", "val"} and sum(len(part) for part in parts.values()) == 9


@pytest.mark.parametrize(("image_format", "quality"), [("jpg", 90), ("webp", None), ("png", None)])
def test_images_are_encoded_anew_only_if_asked(tmp_path: Path, image_format: str, quality: int | None) -> None:
    source = scored_corpus(tmp_path / "source")
    run(source, tmp_path / "new", image_format=image_format, quality=quality)
    new, old = Corpus(str(tmp_path / "new")), images(source)
    for row in rows(new):
        assert row["file"].endswith(f"{row['key']}.{image_format}")
        data = images(new)[row["key"]][image_format]
        with Image.open(io.BytesIO(data)) as image:
            assert image.format == {"jpg": "JPEG", "webp": "WEBP", "png": "PNG"}[image_format] and image.size == (16, 24)
        assert (data == old[row["key"]]["png"]) == (image_format == "png"), "png is copied"
    assert verify(new).whole and new.read_run()["configuration"]["output"]["image_format"] == image_format  # type: ignore[index]


def test_a_quality_encodes_images_of_the_same_format_anew(tmp_path: Path) -> None:
    source = scored_corpus(tmp_path / "source", "jpg")
    run(source, tmp_path / "new", image_format="jpg", quality=40)
    ours, theirs = images(Corpus(str(tmp_path / "new"))), images(source)
    assert all(len(sample["jpg"]) < len(theirs[key]["jpg"]) for key, sample in ours.items())


def test_captions_are_made_from_columns_and_checked_by_verify(tmp_path: Path) -> None:
    source = scored_corpus(tmp_path / "source")
    run(source, tmp_path / "new", where="clip > 0.6", caption=Caption("{{{prompt}}} {style}, {clip:.2f}{negative_prompt}"))
    new = Corpus(str(tmp_path / "new"))
    for row in rows(new):
        assert row["caption"] == f"{{{row['prompt']}}} ü, {row['clip']:.2f}"
        assert images(new)[row["key"]]["txt"].decode() == row["caption"]
    assert verify(new).whole
    (tmp_path / "new" / "run.json").unlink()
    assert verify(new).corrupt == 1, "the texts are not taken for damaged where the template is not known"
    again = tmp_path / "again"
    run(Corpus(str(make_copy(source, tmp_path))), again, where="clip > 0.6", caption=Caption("{prompt}"))


def make_copy(source: Corpus, tmp_path: Path) -> Path:
    """A second selection's source: the first one's output."""
    run(source, tmp_path / "first", caption=Caption("{style}"), columns=("clip",))
    return tmp_path / "first"


def test_a_selection_of_a_selection_keeps_its_captions(tmp_path: Path) -> None:
    first = Corpus(str(make_copy(scored_corpus(tmp_path / "source"), tmp_path)))
    run(first, tmp_path / "second", where="clip > 0.6", columns=())
    second = Corpus(str(tmp_path / "second"))
    assert [row["caption"] for row in rows(second)] == ["ü"] * len(rows(second)) and "clip" not in rows(second)[0]
    assert verify(second).whole


def test_columns_choose_what_is_carried(tmp_path: Path) -> None:
    source = scored_corpus(tmp_path / "source")
    score(source, "full", psnr=[float(row) for row in range(12)])
    run(source, tmp_path / "new", columns=("weight", "clip", "full.psnr", "key"))
    found = rows(Corpus(str(tmp_path / "new")))[0]
    assert {"weight", "clip", "full_psnr"} <= found.keys() and not {"style", "nsfw", "duplicate"} & found.keys()


def test_scores_of_several_evaluations_are_one_column_where_they_agree(tmp_path: Path) -> None:
    source = scored_corpus(tmp_path / "source")
    score(source, "full", psnr=[40.0] * 12, clip=[0.5] * 12, nsfw=[None] * 11 + [0.0])
    with plan(source, where='nsfw < 0.05 and "full".psnr > 30 and scores.clip > 0.6').scored as scored:
        assert [row for _, row, _ in scored.chosen()] == [0, 1, 3]
    with pytest.raises(UsageError, match=r'"scores"\.clip'):
        plan(source, where="clip > 0.1")


def test_the_same_command_goes_on_after_a_kill_with_the_same_bytes(tmp_path: Path) -> None:
    source = scored_corpus(tmp_path / "source")
    options: dict[str, Any] = {"splits": parse_splits("train:0.7,val:0.3"), "shard_size": 2, "caption": Caption("{style} {clip}")}
    run(source, tmp_path / "whole", **options)
    for stop_at in (1, 2):
        selection, written = plan(source, **options), []

        def stop(line: str, written: list[str] = written, stop_at: int = stop_at) -> None:
            written.append(line)
            if len(written) == stop_at:
                raise KeyboardInterrupt

        with selection.scored, pytest.raises(KeyboardInterrupt):
            select(selection, str(tmp_path / "killed"), Owner.here(), report=stop)
    assert run(source, tmp_path / "killed", **options).written == 5 - 3
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert run(source, tmp_path / "killed", **options).written == 0


def test_two_commands_share_the_shards(tmp_path: Path) -> None:
    source = scored_corpus(tmp_path / "source")
    run(source, tmp_path / "alone", shard_size=1)
    selection, others = plan(source, shard_size=1), []
    with selection.scored:

        def other(_: str) -> None:
            if not others:
                others.append(run(source, tmp_path / "shared", shard_size=1))

        mine = select(selection, str(tmp_path / "shared"), Owner.here(), report=other)
    assert mine.written == 1 and others[0].written == 8 and others[0].left == 0
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")


def test_the_shard_of_a_killed_command_is_taken_over(tmp_path: Path) -> None:
    source, owner = scored_corpus(tmp_path / "source"), Owner.here()
    selection = plan(source)
    new = Corpus(str(tmp_path / "new"))
    with selection.scored:
        new.start_run(selection.record(new.url, 0))
    assert Leases(new, LEASES, 150.0, replace(owner, started=1, pid=owner.pid)).acquire("00000")
    (tmp_path / "new" / "images").mkdir()
    (tmp_path / "new" / "images" / ".00000.tar.0123456789abcdef.tmp").write_bytes(b"torn")
    assert run(source, new.url).written == 1
    assert verify(new).whole and not verify(new).missing and not list((tmp_path / "new" / "images").glob(".*"))


def test_another_selection_is_not_written_into_it(tmp_path: Path) -> None:
    source = scored_corpus(tmp_path / "source")
    run(source, tmp_path / "new", where="clip > 0.25")
    before = contents(tmp_path / "new")
    with pytest.raises(UsageError, match=r"^--output .*/new already holds .* select\.where is"):
        run(source, tmp_path / "new", where="clip > 0.3")
    score(source, clip=[1.0] * 12)
    with pytest.raises(UsageError, match="its rows are others"):
        run(source, tmp_path / "new", where="clip > 0.25")
    assert contents(tmp_path / "new") == before


def test_a_split_is_not_written_through_a_link_out_of_the_directory(tmp_path: Path) -> None:
    source = scored_corpus(tmp_path / "source")
    (tmp_path / "outside").mkdir()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "train").symlink_to(tmp_path / "outside")
    with pytest.raises(UsageError, match="is a link out of"):
        run(source, tmp_path / "new", splits=(Split("train", 0.5), Split("val", 0.5)))
    assert not list((tmp_path / "outside").iterdir()) and [one.name for one in (tmp_path / "new").iterdir()] == ["train"]


def test_a_fifo_is_no_evaluation(tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    os.mkfifo(tmp_path / "evaluation" / "a.parquet")
    with pytest.raises(StorageError, match="not a regular file"):
        find_scores(Folder(str(tmp_path)), "evaluation")


@pytest.mark.parametrize(("changed", "what"), [(b"\x89PNG\r\n\x1a\n", "image"), (b"an \xc3\xa4\n", "text")])
def test_a_damaged_sample_ends_it_and_nothing_of_its_shard_appears(tmp_path: Path, changed: bytes, what: str) -> None:
    source = scored_corpus(tmp_path / "source")
    path = tmp_path / "source" / "images" / "00001.tar"
    data = path.read_bytes()
    place = data.index(changed) + len(changed)
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with pytest.raises(StorageError, match=rf"images/00001\.tar .*the {what} of 'ключ-0004' is not the one of its row"):
        run(source, tmp_path / "new", shard_size=3)
    new = Corpus(str(tmp_path / "new"))
    assert new.committed() == {0} and not list((tmp_path / "new" / "images").glob(".*"))


def test_embedded_images_are_those_of_the_tar(tmp_path: Path) -> None:
    from hybridiff.corpus import ShardWriter
    from hybridiff.images import Encoder
    from tests.corpus.corpora import RUN_VALUES, USER_SCHEMA, record, result

    source = Corpus(str(tmp_path / "source"))
    configuration = record().configuration | {"output": {"embed_images": True, "image_format": "png", "sidecar": "none"}}
    source.start_run(record(configuration=configuration, plan={"rows": 3, "shards": 1, "content": "0"}))
    writer = ShardWriter(source, 0, RUN_VALUES, USER_SCHEMA, Encoder("png"), sidecar=False, embed_images=True)
    for number in range(3):
        writer.write(result(number))
    writer.commit({})
    run(source, tmp_path / "new", image_format="jpg")
    new = Corpus(str(tmp_path / "new"))
    assert all(row["image"]["bytes"] == images(new)[row["key"]]["jpg"] for row in rows(new))
    assert verify(new).whole and all(sample.keys() == {"jpg", "txt"} for sample in images(new).values())


def test_many_small_shards_are_made_of_one_large_one_in_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hybridiff.export import select_corpus

    source, opened = scored_corpus(tmp_path / "source"), []
    read = select_corpus.shard_samples
    monkeypatch.setattr(select_corpus, "shard_samples", lambda *given: opened.append(1) or read(*given))
    assert run(source, tmp_path / "new", shard_size=1).written == 9 and len(opened) == 3


def test_positions_cover_every_selected_row_once(tmp_path: Path) -> None:
    selection = plan(scored_corpus(tmp_path / "source"), splits=parse_splits("a:0.5,b:0.3,c:0.2"), shard_size=2)
    with selection.scored:
        found = [
            (part, shard * 4 + int(place))
            for part in range(3)
            for index in range(selection.shards(part))
            for shard, places in selection.places(part, index)
            for place in places
        ]
    assert sorted(row for _, row in found) == [row for row in range(12) if row not in FAILED_ROWS]
    assert found == sorted(found) and np.concatenate(selection.splits).shape == (12,)


def test_the_refill_has_new_keys_and_seeds_and_the_same_prompts(tmp_path: Path) -> None:
    from hybridiff.export.refill import write_refill

    source, tables = scored_corpus(tmp_path / "source"), {}
    for name in ("refill.parquet", "refill.csv"):
        selection = plan(source, where=WHERE)
        with selection.scored:
            for _ in range(2):  # as by the same command again
                write_refill(selection, str(tmp_path / name.partition(".")[2] / name))
        tables[name] = request_rows(tmp_path / name.partition(".")[2] / name)
    assert tables["refill.parquet"] == tables["refill.csv"]
    old = {row["key"]: row for row in rows(source)}
    selected = {7, 8, 9, 11}
    assert [row["refill_of"] for row in tables["refill.csv"]] == [key for i, key in enumerate(old) if i not in selected]
    for row in tables["refill.csv"]:
        replaced = old[row["refill_of"]]
        assert row["prompt"] == replaced["prompt"] and row["seed"] != replaced["seed"] and row["key"] not in old
    assert len({row["seed"] for row in tables["refill.csv"]}) == len({row["key"] for row in tables["refill.csv"]}) == 8


def request_rows(path: Path) -> list[dict[str, Any]]:
    """The samples that a job makes of a table."""
    from hybridiff.config import DataConfig, SamplingConfig
    from hybridiff.prompts.plan import make_plan

    made = make_plan(DataConfig(prompts=[str(path)]), SamplingConfig(), 100)
    samples = [sample for index in range(made.shards) for sample in made.shard(index).samples]
    return [
        {
            "key": one.key,
            "prompt": one.prompt,
            "seed": one.seed,
            "style": one.columns["style"],
            "refill_of": one.columns["refill_of"],
        }
        for one in samples
    ]


def test_a_refill_of_a_refill_has_other_keys_again(tmp_path: Path) -> None:
    from hybridiff.export.refill import _refilled

    row = {"key": "a-r1", "seed": 5}
    assert _refilled(row, 2)["key"] == "a-r1-r2"
    long = {"key": "é" * 99, "seed": 5}
    assert len(_refilled(long, 1)["key"].encode()) <= 160 and _refilled(long, 1) == _refilled(long, 1)


def test_a_refill_does_not_replace_another_file(tmp_path: Path) -> None:
    from hybridiff.export.refill import write_refill

    (tmp_path / "refill.csv").write_text("mine")
    selection = plan(scored_corpus(tmp_path / "source"), where=WHERE)
    with selection.scored, pytest.raises(UsageError, match="is there already"):
        write_refill(selection, str(tmp_path / "refill.csv"))
    assert (tmp_path / "refill.csv").read_text() == "mine"


def test_scores_are_read_from_another_directory(tmp_path: Path) -> None:
    from hybridiff.storage.folder import Folder

    source = scored_corpus(tmp_path / "source")
    (tmp_path / "source" / "evaluation").rename(tmp_path / "evaluation")
    with pytest.raises(UsageError, match="no scores were found"):
        plan(source, where="clip > 0.5")
    found = find_scores(Folder(str(tmp_path)), "evaluation")
    selection = plan_selection(read_whole(source), SelectOptions(where="clip > 0.5"), found)
    with selection.scored:
        assert selection.rows() == 4


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"key": ["x"] * 12}, "has no key of"),
        ({"key": ["ключ-0000"] * 12}, "twice"),
        ({"name": ["x"] * 12, "key": None}, "has no column 'key'"),
    ],
)
def test_an_evaluation_of_something_else_is_refused(tmp_path: Path, damage: dict[str, Any], message: str) -> None:
    source = scored_corpus(tmp_path / "source")
    path = tmp_path / "source" / "evaluation" / "scores.parquet"
    table = pq.read_table(path).to_pydict() | damage
    import pyarrow as pa

    pq.write_table(pa.table({name: values for name, values in table.items() if values is not None}), path)
    with pytest.raises(UsageError, match=message):
        plan(source, where="clip > 0.5")
    path.write_bytes(b"no parquet")
    with pytest.raises(UsageError, match="can't be read"):
        plan(source, where="clip > 0.5")


def test_nan_is_no_value(tmp_path: Path) -> None:
    source = scored_corpus(tmp_path / "source")
    score(source, clip=[float("nan"), *(1.0 for _ in range(11))])
    selection = plan(source, where="clip > 0.25")
    with selection.scored:
        reasons = {reason.reason: reason.in_all for reason in selection.reasons}
    assert reasons["clip > 0.25: no value"] == 1 and reasons["clip > 0.25"] == 0
