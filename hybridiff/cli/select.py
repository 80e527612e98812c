"""``hybridiff select``: copies the rows of a scored corpus that meet a condition into a corpus of their own.

    hybridiff select runs/mine -o runs/good --where "clip > 0.25 and nsfw < 0.2 and not duplicate"
    hybridiff select runs/mine -o runs/good --split train:0.98,val:0.02 --format jpg --quality 95
    hybridiff select runs/mine -o runs/good --where "clip > 0.25" --refill runs/refill.parquet

The condition is SQL on the columns of a row: those of metadata/ and the scores of all evaluation/*.parquet, joined by key. Images
are copied as they are unless --format asks for another one, and the source is only read. The same command goes on where it was
stopped, and several share the work. Prints how many rows are left out by which reason, and as its last line JSON: {"rows",
"selected", "left_out", "splits", "shards_written", "shards_left"}. Exit codes: 0 done, but for shards that another process is
writing; 1 trouble of the storage; 2 a mistake in what was given, such as an unknown column; 130 interrupted.
"""

import json
import sys
from dataclasses import asdict, astuple
from typing import TYPE_CHECKING

from hybridiff.cli import Parser, say, say_aside, storage_errors, whole
from hybridiff.cluster.exit_codes import DONE
from hybridiff.cluster.launch import detect_batch_job
from hybridiff.errors import UsageError, amount
from hybridiff.export.select_options import Caption, SelectOptions, parse_names, parse_splits
from hybridiff.images import IMAGE_FORMATS
from hybridiff.secrets import refuse_credentials

if TYPE_CHECKING:
    from argparse import Namespace

    from hybridiff.export.selection import Selection

REFILLS = (".parquet", ".csv")


def main(arguments: list[str]) -> int:
    """Selects rows of a corpus, and says what was left out."""
    given = parser().parse_args(arguments)
    for option in ("corpus", "output", "refill", "scores"):
        refuse_credentials("CORPUS" if option == "corpus" else f"--{option}", getattr(given, option))
    if given.refill is not None and not given.refill.endswith(REFILLS):
        raise UsageError(f"--refill is {given.refill!r}; allowed: a name that ends with {' or '.join(REFILLS)}")
    options = SelectOptions(
        where=given.where,
        splits=parse_splits(given.split) if given.split is not None else (),
        image_format=given.format,
        quality=given.quality,
        shard_size=given.shard_size,
        columns=parse_names(given.columns) if given.columns is not None else None,
        caption=Caption(given.caption) if given.caption is not None else None,
    )
    try:
        import duckdb  # noqa: F401
    except ImportError as error:
        raise UsageError("select needs duckdb, which is not installed: pip install 'hybridiff[evaluate]'") from error
    with storage_errors():
        return _select(given, options)


def _select(given: "Namespace", options: SelectOptions) -> int:
    from hybridiff.cluster.queue import job_ended
    from hybridiff.corpus.corpus import Corpus
    from hybridiff.corpus.layout import EVALUATIONS
    from hybridiff.export.refill import write_refill
    from hybridiff.export.score_files import find_scores
    from hybridiff.export.select_corpus import check_output, select
    from hybridiff.export.selection import plan_selection, read_whole
    from hybridiff.storage.folder import Folder
    from hybridiff.storage.owner import Owner

    source = read_whole(Corpus(given.corpus, "CORPUS"))
    folder = source.corpus if given.scores is None else Folder(given.scores, "--scores")
    scores = find_scores(folder, EVALUATIONS) or ({} if given.scores is None else find_scores(folder, ""))
    if given.scores is not None and not scores:
        raise UsageError(f"--scores is {given.scores!r}, which holds no *.parquet; allowed: where hybridiff evaluate wrote")
    selection = plan_selection(source, options, scores)
    with selection.scored:
        check_output(selection, given.output)
        say(_counts(selection), sys.stdout)
        if given.dry_run:
            shards = sum(selection.shards(part) for part in range(len(selection.sizes)))
            say([json.dumps(_summary(selection) | {"shards_written": 0, "shards_left": shards})], sys.stdout)
            return DONE
        if given.refill is not None:
            say(write_refill(selection, given.refill), sys.stdout)
        copied = select(selection, given.output, Owner.here(*astuple(detect_batch_job())), job_ended, say_aside)
    ending = f"; left to another process, which is writing: {amount(copied.left, 'shard')}" if copied.left else ""
    say([f"{given.output}: {_sizes(selection.sizes)}, {amount(copied.written, 'shard')} written{ending}"], sys.stdout)
    say([json.dumps(_summary(selection) | {"shards_written": copied.written, "shards_left": copied.left})], sys.stdout)
    return DONE


def parser() -> Parser:
    """The parser of this command."""
    found = Parser("select", __doc__)
    found.add_argument("corpus", metavar="CORPUS", help="directory of the corpus: a path or any fsspec url")
    found.add_argument("-o", "--output", metavar="NEW", required=True, help="directory of the new corpus, not in the old one")
    found.add_argument("--where", metavar="SQL", help="condition on the columns of a row; by default every image is selected")
    help_split = "splits and their shares, such as train:0.98,val:0.02, by the hash of keys: a corpus for each, in NEW/train, ..."
    found.add_argument("--split", metavar="NAME:SHARE,...", help=help_split)
    found.add_argument("--format", metavar="|".join(IMAGE_FORMATS), help="format to encode images in; by default they are copied")
    found.add_argument("--quality", type=whole(1), metavar="N", help="quality of --format jpg or webp; 95 if images are encoded")
    found.add_argument("--shard_size", type=whole(1), metavar="N", help="images in a shard; by default that of the corpus")
    help_columns = "columns to carry besides Hybridiff's own; by default those of the prompt tables and the scores in --where"
    found.add_argument("--columns", metavar="NAME,...", help=help_columns)
    help_caption = 'template of the text of each image, such as "{prompt}, {style}"; by default it is as it was'
    found.add_argument("--caption", metavar="TEXT", help=help_caption)
    help_refill = "prompt table (.parquet or .csv) to write: the rows that are left out, with new keys and seeds"
    found.add_argument("--refill", metavar="FILE", help=help_refill)
    found.add_argument("--scores", metavar="DIR", help="the -o of hybridiff evaluate, if it was not the corpus itself")
    found.add_argument("--dry_run", action="store_true", help="only say what would be selected")
    return found


def _counts(selection: "Selection") -> list[str]:
    reasons = [reason for reason in selection.reasons if reason.in_all]
    width = max((len(str(reason.in_all)) for reason in reasons), default=1)
    lines = [f"left out: {reason.rows:{width}} ({reason.in_all:{width}} in all)  {reason.reason}" for reason in reasons]
    return [*lines, f"selected: {_sizes(selection.sizes)} of {amount(selection.source.rows, 'row')}"]


def _sizes(rows: dict[str, int]) -> str:
    total = amount(sum(rows.values()), "image")
    return total if list(rows) == [""] else f"{total} ({', '.join(f'{name} {count}' for name, count in rows.items())})"


def _summary(selection: "Selection") -> dict[str, object]:
    splits = selection.sizes if selection.options.splits else {}
    reasons = [asdict(reason) for reason in selection.reasons]
    return {"rows": selection.source.rows, "selected": sum(selection.sizes.values()), "left_out": reasons, "splits": splits}
