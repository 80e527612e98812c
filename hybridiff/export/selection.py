"""The plan of a selection: which rows of a corpus go into which new shard, and why the others do not.

It depends on the source, its scores and the options alone, so every process that runs the same command makes the same plan.
"""

import hashlib
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hybridiff import __version__
from hybridiff.columns import CAPTION, IMAGE, RESERVED, SCHEMA
from hybridiff.config.output import SHARD_SIZE
from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.reader import whole_marker
from hybridiff.corpus.record import RunRecord, option
from hybridiff.corpus.splits import no_corpus
from hybridiff.errors import UsageError
from hybridiff.export.score_files import ScoreFile
from hybridiff.export.scored_rows import Reason, ScoreColumn, ScoredRows
from hybridiff.export.select_options import SelectOptions, Split, split_of
from hybridiff.images import Encoder
from hybridiff.storage.folder import read_each

EXCLUDED = frozenset({"output.url", "select.source"})  # what the content of a selection does not depend on
LEFT_OUT = 255  # in place of the index of a split
_PACKAGES = ("duckdb", "webdataset", "pyarrow", "pillow", "zlib-ng")


@dataclass(frozen=True)
class WholeCorpus:
    """A corpus all of whose shards are committed.

    Args:
        corpus: the corpus.
        run: its run record.
        markers: the commit markers in order.
    """

    corpus: Corpus
    run: dict[str, Any]
    markers: list[dict[str, Any]]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(marker["rows"] for marker in self.markers)

    def option(self, section: str, name: str, default: Any) -> Any:
        """An option of its configuration."""
        return option(self.run["configuration"], f"{section}.{name}", default)


def read_whole(corpus: Corpus) -> WholeCorpus:
    """Reads the run record and every marker.

    Raises:
        UsageError: there is no corpus, or it is not whole.
    """
    run = corpus.read_run()
    if run is None:
        raise no_corpus(corpus)
    shards = run["plan"].get("shards")
    if type(shards) is not int or shards < 0:
        raise UsageError(f"{corpus.url}: run.json is damaged: its plan has {shards!r} shards")
    committed = corpus.committed()
    if missing := shards - sum(index < shards for index in committed):
        raise UsageError(
            f"{corpus.url} is not whole: {missing} of its {shards} shards are missing; allowed: a whole one, so run the "
            "command that generates it again"
        )
    markers = list(read_each(partial(whole_marker, corpus, run["fingerprint"]), range(shards)).values())
    if not markers:
        raise UsageError(f"{corpus.url} has no rows; allowed: a corpus with some")
    return WholeCorpus(corpus, run, markers)


@dataclass(frozen=True)
class Carried:
    """A column that the selection carries.

    Args:
        field: its name and type there.
        score: the score that it holds; None for a column of the source.
    """

    field: pa.Field
    score: ScoreColumn | None = None


@dataclass
class Selection:
    """A plan.

    Args:
        source: the corpus.
        options: what was asked for.
        scored: rows and scores; its kept columns are those of ``carried`` and of the caption.
        reasons: why rows are left out.
        carried: columns besides Hybridiff's own.
        caption_columns: columns of the caption by the name in its template.
        splits: the split of each row of each shard, by index; ``LEFT_OUT`` for those that are left out.
        content: identity of what is selected.
    """

    source: WholeCorpus
    options: SelectOptions
    scored: ScoredRows
    reasons: list[Reason]
    carried: list[Carried]
    caption_columns: dict[str, ScoreColumn]
    splits: list[NDArray[np.uint8]]
    content: str
    _counts: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        parts = len(self.options.splits) or 1
        self._counts = np.array([[np.count_nonzero(one == part) for one in self.splits] for part in range(parts)], np.int64)

    @property
    def shard_size(self) -> int:
        """Images in a shard."""
        return self.options.shard_size or int(self.source.option("output", "shard_size", SHARD_SIZE))

    @property
    def image_format(self) -> str:
        """Format of the source's images."""
        return str(self.source.option("output", "image_format", "png"))

    def encoder(self) -> tuple[Encoder, bool]:
        """Format of the new images, and whether they are encoded anew."""
        return self.options.encoder_for(self.image_format, int(self.source.option("output", "quality", 95)))

    @property
    def caption(self) -> str | None:
        """Template of the captions, of this selection or of one that the source was made by; None if they are the prompts."""
        return self.options.caption.template if self.options.caption else self.source.option("output", CAPTION, None)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of rows of each split, by name; "" is all of a selection without splits."""
        names = [split.name for split in self.options.splits] or [""]
        return {name: self.rows(part) for part, name in enumerate(names)}

    def rows(self, part: int = 0) -> int:
        """Number of rows of a split."""
        return int(self._counts[part].sum())

    def shards(self, part: int = 0) -> int:
        """Number of shards of a split."""
        return -(-self.rows(part) // self.shard_size)

    def places(self, part: int, index: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """The rows of a new shard: shards of the source, each with positions of rows in it."""
        ends = np.cumsum(self._counts[part])
        first, stop = index * self.shard_size, min((index + 1) * self.shard_size, self.rows(part))
        shard = int(np.searchsorted(ends, first, side="right"))
        while first < stop:
            start = int(ends[shard] - self._counts[part][shard])
            found = np.flatnonzero(self.splits[shard] == part)[first - start : stop - start]
            if len(found):
                yield shard, found
            first += len(found)
            shard += 1

    def schema(self) -> pa.Schema:
        """The columns besides Hybridiff's own."""
        return pa.schema([one.field for one in self.carried])

    def record(self, url: str, part: int) -> RunRecord:
        """The run record of a split: the source's configuration, with what the selection changes."""
        encoder, encoded = self.encoder()
        output = {
            **self.source.run["configuration"].get("output", {}),
            "url": url,
            "image_format": encoder.image_format,
            "quality": encoder.quality,
            "shard_size": self.shard_size,
            CAPTION: self.caption,
        }
        splits = self.options.splits
        select = {
            "source": self.source.corpus.url,
            "fingerprint": self.source.run["fingerprint"],
            "where": self.options.where,
            "encoded": encoded,
            "split": splits[part].name if splits else None,
            "splits": {split.name: split.share for split in splits},
            "columns": [one.field.name for one in self.carried],
            "scores": {one.field.name: str(one.score) for one in self.carried if one.score},
        }
        return RunRecord(
            configuration=self.source.run["configuration"] | {"output": output, "select": select},
            plan={
                "rows": self.rows(part),
                "shards": self.shards(part),
                "content": self.content,
                "source_rows": self.source.rows,
                "left_out": [asdict(reason) for reason in self.reasons],
            },
            excluded=EXCLUDED,
            describe_change=lambda _: "its rows are others",
            versions={"hybridiff": __version__, "python": platform.python_version()} | {p: version(p) for p in _PACKAGES},
        )


def plan_selection(source: WholeCorpus, options: SelectOptions, evaluations: dict[str, ScoreFile]) -> Selection:
    """Reads scores and rows, and decides about each row. The plan's ``scored`` is to be closed.

    Args:
        source: the corpus.
        options: what is asked for.
        evaluations: scores by the name of the evaluation.

    Raises:
        UsageError: a mistake in the options, or no row is left.
        ShardDamaged: rows of the corpus can't be read.
    """
    scored = ScoredRows(source.corpus, len(source.markers), evaluations)
    try:
        terms, named = scored.terms(options.where) if options.where is not None else ([], [])
        fields = options.caption.fields if options.caption else ()
        caption_columns = {field: scored.resolve_text(field, "--caption") for field in fields}
        if options.caption:  # a format that fits no value of its column is refused before anything is written
            options.caption.render(lambda name: _example(caption_columns[name].type))
        carried = _carried(source, options, scored, [column for column in named if column.is_score])
        kept = {one.score: None for one in carried if one.score} | {c: None for c in caption_columns.values() if c.is_score}
        for column in kept:
            scored.use(column)
        scored.load()
        reasons = scored.judge(terms)
        digest = scored.keep(list(kept))
        splits, content = _divide(source, scored, options.splits, digest)
        selection = Selection(source, options, scored, reasons, carried, caption_columns, splits, content)
        if not any(selection.sizes.values()):
            counts = "; ".join(f"{reason.reason}: {reason.rows}" for reason in reasons if reason.rows)
            raise UsageError(f"none of the {source.rows} rows is left ({counts}); allowed: a condition that some row meets")
        return selection
    except BaseException:
        scored.__exit__()
        raise


def _example(kind: pa.DataType) -> Any:
    """Some value of a type; None where there is no simple one."""
    kinds = ((pa.types.is_boolean, True), (pa.types.is_integer, 1), (pa.types.is_floating, 0.5), (pa.types.is_string, "text"))
    return next((value for is_kind, value in kinds if is_kind(kind)), None)


def _divide(
    source: WholeCorpus, scored: ScoredRows, splits: tuple[Split, ...], digest: str
) -> tuple[list[NDArray[np.uint8]], str]:
    """The split of each row, and what identifies all of it."""
    found = [np.full(marker["rows"], LEFT_OUT, np.uint8) for marker in source.markers]
    for shard, row, key in scored.chosen():
        found[shard][row] = split_of(key_number(key), splits) if splits else 0
    identity = hashlib.sha256(digest.encode())
    for marker, one in zip(source.markers, found, strict=True):
        identity.update("".join(file["sha256"] for _, file in sorted(marker["files"].items())).encode() + one.tobytes())
    return found, identity.hexdigest()


def key_number(key: str) -> float:
    """A number from 0 to 1 that belongs to a key, in every corpus."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def _carried(source: WholeCorpus, options: SelectOptions, scored: ScoredRows, named: list[ScoreColumn]) -> list[Carried]:
    own = [field for field in scored.schema if field.name not in SCHEMA.names and field.name != IMAGE.name]
    scores = named
    if options.columns is not None:
        columns = [scored.resolve_text(name, "--columns") for name in options.columns]
        kept = {column.column for column in columns if not column.is_score}
        if source.option("output", CAPTION, None) is not None and options.caption is None:
            kept.add(CAPTION)  # the texts of the images
        own = [field for field in own if field.name in kept]
        scores = [column for column in columns if column.is_score]
    found = [Carried(field.remove_metadata()) for field in own]
    found += [Carried(pa.field(column.output_name, column.type), column) for column in scores]
    if options.caption is not None:
        found = _with_caption(found, options, source)
    names = [one.field.name for one in found]
    for one in found:
        if one.score and (one.field.name in RESERVED or names.count(one.field.name) > 1):
            raise UsageError(f"score {one.field.name!r} has the name of another column; allowed: --columns without one of these")
    return found


def _with_caption(carried: list[Carried], options: SelectOptions, source: WholeCorpus) -> list[Carried]:
    """The columns with the one of the captions in place of an earlier selection's."""
    assert options.caption is not None
    replaces = source.option("output", CAPTION, None) is not None or options.caption.template == f"{{{CAPTION}}}"
    if not replaces and any(one.field.name == CAPTION for one in carried):
        raise UsageError(
            f"--caption is {options.caption.template!r}, and the corpus has a column {CAPTION!r} of its own; allowed: --columns "
            f"without it, or --caption '{{{CAPTION}}}'"
        )
    return [one for one in carried if one.field.name != CAPTION] + [Carried(pa.field(CAPTION, pa.string()))]
