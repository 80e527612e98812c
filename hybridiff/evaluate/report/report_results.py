"""What the report shows of a result: its figures and rows, the prompts' categories, the pairs that differ most."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hybridiff.columns import IMAGE, SCHEMA
from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.layout import EVALUATIONS, metadata_name
from hybridiff.evaluate.report.report_images import Pair, worst_pairs
from hybridiff.storage.folder import Folder, parse_json

MOST_RESULTS = 40  # of a page, the newest
MOST_TAG_COLUMNS = 8


@dataclass(frozen=True)
class Shown:
    """A result with its rows.

    Args:
        document: contents of its JSON file.
        rows: its Parquet file, or no rows where there is none.
        tags: user columns by name, the categories of each row of ``rows``.
        pairs: the pairs that differ most.
    """

    document: dict[str, Any]
    rows: pa.Table
    tags: dict[str, list[tuple[Any, ...]]]
    pairs: list[Pair]

    def measured(self) -> dict[str, NDArray[np.float64]]:
        """The values of each row by metric; NaN where there is none."""
        order = list(self.document["metrics"])
        names = [field.name for field in self.rows.schema if field.type == pa.float64()]
        names.sort(key=lambda name: order.index(name) if name in order else len(order))
        return {name: np.asarray(pc.fill_null(self.rows[name], math.nan).to_numpy()) for name in names}


def read_results(folder: Folder) -> list[Shown]:
    """The results in a directory, the newest first."""
    names = [name.removesuffix(".json") for name in folder.names(EVALUATIONS) if name.endswith(".json")]
    shown = [one for one in (read_result(folder, name) for name in names) if one is not None]
    shown.sort(key=lambda one: str(one.document.get("created", "")), reverse=True)
    return shown[:MOST_RESULTS]


def read_result(folder: Folder, name: str) -> Shown | None:
    """A result with its rows; None if the file is no result."""
    try:
        document: dict[str, Any] = parse_json(folder.read(f"{EVALUATIONS}/{name}.json"))
    except (ValueError, FileNotFoundError):
        return None
    if not _is_result(document):
        return None
    rows = _rows(folder, name)
    corpus = folder if isinstance(folder, Corpus) else _opened(document["corpus"])
    tags = _tags(corpus, rows) if corpus is not None else {}
    reference = _opened(document["against"]) if document.get("join") == "key" else None
    pairs = worst_pairs(corpus, reference, rows) if corpus is not None and reference is not None else []
    return Shown(document, rows, tags, pairs)


def _is_result(document: Any) -> bool:
    """Whether a file's content is what an evaluation writes: the directory may hold other files."""
    if not isinstance(document, dict) or not all(isinstance(document.get(name), str) for name in ("name", "corpus")):
        return False
    sections = [document.get(name) for name in ("metrics", "rows", "images")]
    return all(isinstance(one, dict) for one in sections) and all(isinstance(one, dict) for one in document["metrics"].values())


def _rows(folder: Folder, name: str) -> pa.Table:
    try:
        with folder.fs.open(folder.path(f"{EVALUATIONS}/{name}.parquet"), "rb") as handle:
            return pq.read_table(handle)
    except (FileNotFoundError, pa.ArrowInvalid):  # figures alone are shown
        return pa.table({"key": pa.array([], pa.string())})


def _opened(url: str | None) -> Corpus | None:
    """A corpus that is still where it was; None if it is not."""
    try:
        corpus = Corpus(url or "")
        return corpus if corpus.read_run() is not None else None
    except Exception:  # a page without its images is better than none
        return None


def _tags(corpus: Corpus, rows: pa.Table) -> dict[str, list[tuple[Any, ...]]]:
    """Columns of the prompts' tables whose values repeat, in the order of the rows; none if these can't be read any more."""
    try:
        return _repeated_values(corpus, rows) if rows.num_rows else {}
    except Exception:  # of a corpus that has changed since; storage clients raise types of their own
        return {}


def _repeated_values(corpus: Corpus, rows: pa.Table) -> dict[str, list[tuple[Any, ...]]]:
    tables = []
    for shard in pc.unique(rows["shard"]).to_pylist():
        with corpus.fs.open(corpus.path(metadata_name(shard)), "rb") as handle:
            file = pq.ParquetFile(handle)
            own = [f.name for f in file.schema_arrow if f.name not in SCHEMA.names and f.name != IMAGE.name and _is_tag(f.type)]
            tables.append(file.read(columns=["key", *own]))
    table = pa.concat_tables(tables, promote_options="default")
    place = {key: index for index, key in enumerate(table["key"].to_pylist())}
    order = pa.array([place.get(key) for key in rows["key"].to_pylist()], pa.int64())
    found: dict[str, list[tuple[Any, ...]]] = {}
    for name in table.column_names[1:]:
        values = [_tags_of(value) for value in table[name].take(order).to_pylist()]
        if 2 <= len({tag for tags in values for tag in tags or (None,)}) <= max(2, len(values) / 2):  # of more, it is no category
            found[name] = values
    return dict(list(found.items())[:MOST_TAG_COLUMNS])


def _is_tag(kind: pa.DataType) -> bool:
    """Whether values of a type may be categories; those of a list are one each."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    return not pa.types.is_nested(kind) and not pa.types.is_binary(kind) and not pa.types.is_large_binary(kind)


def _tags_of(value: Any) -> tuple[Any, ...]:
    """The categories of a row: one, or those in its list; none where it has no value."""
    tags = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(tag for tag in tags if tag is not None and tag == tag))  # NaN is no value
