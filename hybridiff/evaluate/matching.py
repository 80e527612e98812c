"""Rows of a corpus, and which row of a reference each is compared with: by key or by prompt, never by order or file name."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.layout import marker_name, metadata_name
from hybridiff.corpus.reader import damaged, not_whole, reading, whole_marker
from hybridiff.corpus.splits import no_corpus
from hybridiff.errors import UsageError, access_error, amount
from hybridiff.evaluate.request import Join
from hybridiff.secrets import one_line
from hybridiff.storage.folder import read_each

_STEPS = ["steps_full", "steps_half", "steps_skipped"]
_COLUMNS = ["key", "prompt", "seed", "status", "width", "height", "prompt_truncated", *_STEPS]
_SIDE = "_reference"  # ending of the reference's columns in a joined table


@dataclass(frozen=True)
class CorpusRows:
    """A whole corpus and its rows.

    Args:
        corpus: the corpus.
        run: its run record.
        markers: commit marker of each shard, in order.
        table: a row per requested image, in order: key, prompt, seed, status, width, height, prompt_truncated, shard, row.
    """

    corpus: Corpus
    run: dict[str, Any]
    markers: tuple[dict[str, Any], ...]
    table: pa.Table

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self.markers)

    def rows(self, index: int) -> int:
        """Number of rows of a shard."""
        return int(self.markers[index]["rows"])

    @property
    def identity(self) -> list[str]:
        """What changes whenever a row or an image does: SHA-256 of each file."""
        return [file["sha256"] for marker in self.markers for _, file in sorted(marker["files"].items())]

    @property
    def images(self) -> int:
        """Number of rows with an image."""
        return sum(int(marker["ok"]) for marker in self.markers)


@dataclass(frozen=True)
class Matches:
    """Pairs of rows of a corpus and a reference.

    Args:
        pairs: a row per pair in which both have an image, sorted: shard, row, shard_reference, key_reference.
        counts: numbers of rows: in the reference, matched, pairs, and those that do not match, by what differs.
    """

    pairs: pa.Table
    counts: dict[str, int]

    def of_shard(self, shard: int) -> dict[int, tuple[int, str]]:
        """The reference's shard and key by row of one shard."""
        mine = self.pairs.filter(pc.equal(self.pairs["shard"], shard))
        partners = zip(mine["shard_reference"].to_pylist(), mine["key_reference"].to_pylist(), strict=True)
        return dict(zip(mine["row"].to_pylist(), partners, strict=True))


def read_rows(url: str, option: str = "CORPUS") -> CorpusRows:
    """The rows of a whole corpus; ``option`` names it in messages.

    Raises:
        UsageError: there is no corpus, or it is not whole; names what is missing.
    """
    corpus = Corpus(url, option)
    try:
        run = corpus.read_run()
        if run is None:
            raise no_corpus(corpus)
        committed, shards = corpus.committed(), run["plan"].get("shards")
        if not isinstance(shards, int) or shards < 1:
            raise UsageError(f"{corpus.url} is empty; allowed: a corpus with images")
        if missing := [index for index in range(shards) if index not in committed]:
            raise not_whole(corpus, f"{len(missing)} of {shards} shards are not committed, such as {marker_name(missing[0])}")
        markers = read_each(partial(whole_marker, corpus, run["fingerprint"]), range(shards))
        tables = read_each(partial(_table, corpus), range(shards))
    except (UsageError, OSError):
        raise
    except Exception as error:  # storage clients raise types of their own
        raise access_error(f"{corpus.url} can't be read: {one_line(error)}", error) from error
    rows = CorpusRows(corpus, run, tuple(markers.values()), pa.concat_tables(tables.values()).combine_chunks())
    if not rows.images:
        raise UsageError(
            f"{corpus.url} holds no image: all of its {rows.table.num_rows} rows failed; allowed: a corpus with images"
        )
    return rows


def match_rows(rows: CorpusRows, reference: CorpusRows, join: Join) -> Matches:
    """Pairs rows of equal keys, or of equal prompts.

    Rows of equal keys whose seeds or prompts differ are other images, and are no pairs. With prompts, keys and seeds may differ.

    Raises:
        UsageError: a key, or a prompt if rows are joined by it, occurs twice on one side.
    """
    for side in (rows, reference):
        _check_unique(side, join)
    joined = rows.table.join(
        reference.table.drop_columns(_STEPS).append_column("there", pa.repeat(True, reference.table.num_rows)),
        keys=join,
        join_type="left outer",
        right_suffix=_SIDE,
        use_threads=False,
    ).sort_by([("shard", "ascending"), ("row", "ascending")])
    both = joined.filter(pc.is_valid(joined["there"]))
    differ = {name: _differing(both, name) for name in ("seed", *(["prompt"] if join == "key" else ["key"]))}
    counts = {
        "reference": reference.table.num_rows,
        "matched": both.num_rows,
        "only_in_corpus": rows.table.num_rows - both.num_rows,
        "only_in_reference": reference.table.num_rows - both.num_rows,
        **{f"other_{name}": pc.sum(mask).as_py() or 0 for name, mask in differ.items()},
        "failed_in_reference": _failed(reference.table),
    }
    if join == "key":
        both = both.filter(pc.invert(pc.or_(differ["seed"], differ["prompt"])))
    both = both.filter(pc.and_(pc.equal(both["status"], "ok"), pc.equal(both[f"status{_SIDE}"], "ok")))
    key = "key" if join == "key" else f"key{_SIDE}"
    names = ["shard", "row", f"shard{_SIDE}", key, "width", "height", f"width{_SIDE}", f"height{_SIDE}"]
    pairs = both.select(names).rename_columns([*names[:3], f"key{_SIDE}", *names[4:]])
    return Matches(pairs, counts | {"pairs": pairs.num_rows})


def refuse_mismatches(rows: CorpusRows, reference: CorpusRows, matches: Matches, join: Join, allow_unmatched: bool) -> None:
    """Refuses pairs that are not of the same request, or not of the same size.

    Args:
        rows: the corpus.
        reference: the reference.
        matches: their pairs.
        join: what joins them.
        allow_unmatched: whether rows without a partner are left out.

    Raises:
        UsageError: rows do not match and were not allowed to, none is left, or sizes differ.
    """
    here, there, counts = rows.corpus.url, reference.corpus.url, matches.counts
    if not counts["matched"]:
        hint = "; rows of equal prompts are compared with --join prompt" if join == "key" else ""
        raise UsageError(f"no row of {here} has a partner in {there}: no {join} occurs in both{hint}")
    found = {name: counts[name] for name in ("only_in_corpus", "only_in_reference")}
    found |= {name: counts[name] for name in ("other_seed", "other_prompt") if join == "key"}
    if join == "key" and any(found.values()) and not allow_unmatched:
        raise UsageError(
            f"rows of {here} and {there} do not match by key: {found['only_in_corpus']} keys only in the corpus, "
            f"{found['only_in_reference']} only in the reference, {found['other_seed']} of other seeds, {found['other_prompt']} "
            "of other prompts; allowed: the same rows, --join prompt, or --allow_unmatched, which leaves those rows out"
        )
    if not counts["pairs"]:
        raise UsageError(
            f"no row of {here} can be compared with {there}: {counts['matched']} match by {join}, none with both images and "
            "equal seeds and prompts"
        )
    sizes = pc.or_(*(pc.not_equal(matches.pairs[name], matches.pairs[f"{name}{_SIDE}"]) for name in ("width", "height")))
    if other := pc.sum(sizes).as_py():
        first = matches.pairs.filter(sizes).slice(0, 1).to_pylist()[0]
        one, two = (f"{first[f'width{side}']} x {first[f'height{side}']}" for side in ("", _SIDE))
        raise UsageError(
            f"{other} of {counts['pairs']} pairs have other sizes, such as {first['key_reference']!r}: {one} in {here}, {two} in "
            f"{there}; allowed: equal sizes for metrics of pairs"
        )


def row_counts(rows: CorpusRows) -> dict[str, int]:
    """Numbers of rows of a corpus, of failed ones, of truncated prompts, and of rows whose prompt an earlier row has."""
    table = rows.table
    return {
        "corpus": table.num_rows,
        "failed": _failed(table),
        "truncated": pc.sum(table["prompt_truncated"]).as_py() or 0,
        "prompts_repeated": table.num_rows - pc.count_distinct(table["prompt"], mode="all").as_py(),
    }


def _table(corpus: Corpus, index: int) -> pa.Table:
    name = metadata_name(index)
    with reading(corpus, index, name), corpus.fs.open(corpus.path(name), "rb") as handle:
        table = pq.read_table(handle, columns=_COLUMNS)
        if missing := [column for column in _COLUMNS if column not in table.column_names]:
            raise damaged(corpus, name, f"it has no column {missing[0]!r}")
    shard = pa.array([index] * table.num_rows, pa.int32())
    return table.append_column("shard", shard).append_column("row", pa.array(range(table.num_rows), pa.int32()))


def _check_unique(rows: CorpusRows, join: Join) -> None:
    repeated = rows.table.num_rows - pc.count_distinct(rows.table[join], mode="all").as_py()
    if repeated:
        allowed = "key, or prompts that occur once" if join == "prompt" else "a corpus whose keys occur once"
        others = f"{amount(repeated, 'row')} with the {join} of another"
        raise UsageError(f"--join is {join!r}, and {rows.corpus.url} has {others}; allowed: {allowed}")


def _differing(table: pa.Table, name: str) -> pa.ChunkedArray:
    there = f"{name}{_SIDE}"
    return pc.not_equal(table[name], table[there]) if there in table.column_names else pa.chunked_array([], pa.bool_())


def _failed(table: pa.Table) -> int:
    return int(pc.sum(pc.not_equal(table["status"], "ok")).as_py() or 0)
