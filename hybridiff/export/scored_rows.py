"""The rows of a corpus beside the scores of its evaluations, joined by key, in a database of DuckDB's on the local disk.

Only the columns that are asked for are read, shard by shard; DuckDB keeps what it needs in bounded memory. SQL reaches nothing
but these tables: no file, no network, no variable of this process, and it can change no setting.
"""

import difflib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from hybridiff.columns import IMAGE
from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.layout import METADATA, metadata_name
from hybridiff.corpus.reader import read_schema, reading
from hybridiff.errors import UsageError
from hybridiff.export.condition import Term, parse_condition
from hybridiff.export.score_files import ScoreFile
from hybridiff.secrets import one_line

FAILED = "the image could not be generated"  # the first reason to leave out a row
_BATCH = 65_536  # rows
_SETTINGS = {
    "memory_limit": "'1GB'",
    "threads": "2",
    "preserve_insertion_order": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",  # else SQL could name variables of this process
    "enable_external_access": "false",
}


@dataclass(frozen=True)
class ScoreColumn:
    """A column as it was named.

    Args:
        relations: where it is: names of evaluations, or ``metadata`` for the corpus's own columns.
        column: its name there.
        type: type of its values.
        qualified: whether it was named with its relation.
    """

    relations: tuple[str, ...]
    column: str
    type: pa.DataType
    qualified: bool = False

    def __str__(self) -> str:
        return f"{self.relations[0]}.{self.column}"

    @property
    def is_score(self) -> bool:
        """Whether it is of an evaluation and not of the corpus itself."""
        return METADATA not in self.relations

    @property
    def output_name(self) -> str:
        """The name under which a selection carries it."""
        return f"{self.relations[0]}_{self.column}" if self.qualified and self.is_score else self.column


@dataclass(frozen=True)
class Reason:
    """Why rows are left out.

    Args:
        reason: the reason in words.
        rows: number of rows whose first reason it is.
        in_all: number of rows that it applies to; after the first reason, among those that have an image.
    """

    reason: str
    rows: int
    in_all: int


class ScoredRows:
    """Rows and scores: first columns are resolved, then ``load`` reads these, then ``judge`` decides about the rows.

    Args:
        corpus: the corpus.
        shards: number of its shards, all committed.
        evaluations: scores by the name of the evaluation.
    """

    def __init__(self, corpus: Corpus, shards: int, evaluations: dict[str, ScoreFile]) -> None:
        self._corpus, self._shards, self._evaluations = corpus, shards, evaluations
        self.schema = read_schema(corpus)
        own = {field.name: field.type for field in self.schema if field.name != IMAGE.name}
        self._known = {METADATA: own} | {name: file.types() for name, file in evaluations.items()}
        self._tables = {METADATA: "m"} | {name: f"e{number}" for number, name in enumerate(evaluations)}
        self._used: dict[ScoreColumn, str] = {}  # internal names
        self._kept: list[ScoreColumn] = []
        self._folder = tempfile.TemporaryDirectory(prefix="hybridiff-select-")
        self._connection = _connect(self._folder.name)

    def __enter__(self) -> "ScoredRows":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._folder.cleanup()

    def resolve(self, names: Sequence[str], option: str) -> tuple[ScoreColumn, list[str]]:
        """A column, and what is left of a dotted name; upper and lower case are the same unless both exist.

        Raises:
            UsageError: there is none of this name.
        """
        if len(names) > 1 and (relation := _find(names[0], self._known)) and (own := _find(names[1], self._known[relation])):
            return ScoreColumn((relation,), own, self._known[relation][own], qualified=True), list(names[2:])
        holding = {relation: own for relation, known in self._known.items() if (own := _find(names[0], known))}
        if not holding:
            raise UsageError(f"{option}: there is no column {'.'.join(names)!r}{self._hint(names[0])}")
        spelled = names[0] if names[0] in holding.values() else next(iter(holding.values()))
        relations = tuple(relation for relation, own in holding.items() if own == spelled)
        found = ScoreColumn(relations, spelled, self._known[relations[0]][spelled])
        if len({self._known[relation][spelled] for relation in relations}) > 1:
            raise _ambiguous(found)
        return found, list(names[1:])

    def resolve_text(self, text: str, option: str) -> ScoreColumn:
        """A column from its name, or from its relation's and its own with a dot between, each in double quotes or not.

        Raises:
            UsageError: there is none of this name.
        """
        whole = any(_find(text, known) for known in self._known.values())
        names = [text] if whole else [part.strip('"') for part in text.split(".")]
        column, rest = self.resolve(names, option)
        if rest:
            raise UsageError(f"{option}: {text!r} is a part of column {column.column!r}; allowed: whole columns")
        return column

    def _hint(self, name: str) -> str:
        allowed = list(dict.fromkeys(column for known in self._known.values() for column in known))
        near = difflib.get_close_matches(name.lower(), allowed, n=1, cutoff=0.75)
        scores = "" if self._evaluations else "; no scores were found, which hybridiff evaluate writes"
        return f"{f'; did you mean {near[0]}?' if near else ''}; the columns are {', '.join(allowed)}{scores}"

    def use(self, column: ScoreColumn) -> str:
        """The internal name of a column, which ``load`` will read."""
        return self._used.setdefault(column, f"c{len(self._used)}")

    def terms(self, where: str) -> tuple[list[Term], list[ScoreColumn]]:
        """The terms of a condition, and the columns in it.

        Raises:
            UsageError: a mistake in the condition.
        """
        named: dict[ScoreColumn, None] = {}

        def resolve(names: Sequence[str]) -> list[str]:
            column, rest = self.resolve(names, "--where")
            named[column] = None
            return [self.use(column), *rest]

        with _mistakes():
            return parse_condition(self._connection, where, resolve), list(named)

    def load(self) -> None:
        """Reads the columns in use.

        Raises:
            UsageError: an evaluation can't be read, is of no row of the corpus, or has one twice; or columns of one name differ.
            ShardDamaged: rows of the corpus can't be read.
        """
        self._load_metadata()
        scores = [name for name in self._evaluations if self._columns_of(name)]
        for name in scores:
            self._load_scores(name)
        joins = " ".join(f"LEFT JOIN {self._tables[name]} ON m.key = {self._tables[name]}.key" for name in scores)
        views = ["m.shard", "m.row", "m.key", "m.status"]
        for column, internal in self._used.items():
            sources = [f"{self._tables[relation]}.{internal}" for relation in column.relations]
            if pa.types.is_floating(column.type):  # NaN is no value: in SQL it would be greater than any number
                sources = [f"nullif({source}, CAST('nan' AS DOUBLE))" for source in sources]
            views.append(f"coalesce({', '.join(sources)}) AS {internal}")
            for other in sources[1:]:
                differ = f"{sources[0]} IS NOT NULL AND {other} IS NOT NULL AND {sources[0]} IS DISTINCT FROM {other}"
                if self._count(f"m {joins} WHERE {differ}"):
                    raise _ambiguous(column)
        self._connection.execute(f"CREATE VIEW joined AS SELECT {', '.join(views)} FROM m {joins}")

    def _columns_of(self, relation: str) -> dict[str, str]:
        """The columns in use of a relation, by internal name."""
        return {internal: column.column for column, internal in self._used.items() if relation in column.relations}

    def _load_metadata(self) -> None:
        used = {"key": "key", "status": "status"} | self._columns_of(METADATA)
        for shard in range(self._shards):
            name, first = metadata_name(shard), 0
            with reading(self._corpus, shard, name), self._corpus.fs.open(self._corpus.path(name), "rb") as handle:
                for batch in pq.ParquetFile(handle).iter_batches(_BATCH, columns=list(dict.fromkeys(used.values()))):
                    places = pa.array(range(first, first + batch.num_rows), pa.int32())
                    shards = pa.array([shard] * batch.num_rows, pa.int32())
                    piece = {"shard": shards, "row": places} | {own: batch.column(column) for own, column in used.items()}
                    self._append("m", pa.table(piece), f"{name} in {self._corpus.url}")
                    first += batch.num_rows

    def _load_scores(self, relation: str) -> None:
        table, file, used = self._tables[relation], self._evaluations[relation], self._columns_of(relation)
        found = False
        for batch in file.batches(list(used.values())):
            piece = {"key": batch.column("key")} | {own: batch.column(column) for own, column in used.items()}
            self._append(table, pa.table(piece), str(file))
            found = True
        if not found or not self._count(f"m JOIN {table} ON m.key = {table}.key"):
            raise UsageError(f"{file} has no key of {self._corpus.url}; allowed: an evaluation of this corpus")
        for (key,) in self._all(f"SELECT key FROM {table} GROUP BY key HAVING count(*) > 1 LIMIT 1"):
            raise UsageError(f"{file} holds key {key!r} twice; allowed: a row for each key")

    def _append(self, table: str, piece: pa.Table, source: str) -> None:
        self._connection.register("piece", piece)
        try:
            self._connection.execute(f"CREATE TABLE IF NOT EXISTS {table} AS SELECT * FROM piece LIMIT 0")
            self._connection.execute(f"INSERT INTO {table} SELECT * FROM piece")
        except duckdb.Error as error:
            raise UsageError(f"{source} has columns that DuckDB can't read ({one_line(error)})") from error
        finally:
            self._connection.unregister("piece")

    def _count(self, source: str) -> int:
        return int(self._all(f"SELECT count(*) FROM {source}")[0][0])

    def _all(self, query: str) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = self._connection.execute(query).fetchall()
        return found

    def judge(self, terms: Iterable[Term]) -> list[Reason]:
        """Decides about each row, and counts why rows are left out: first those without an image, then by term.

        Raises:
            UsageError: a term is no condition, or can't be computed for some row.
        """
        terms = list(terms)
        tests = [(FAILED, "status IS DISTINCT FROM 'ok'")]
        with _mistakes():
            for term in terms:
                self._check_boolean(term)
                tests += [(term.text, f"NOT ({term.sql})"), (f"{term.text}: no value", f"({term.sql}) IS NULL")]
            cases = " ".join(f"WHEN {test} THEN {number}" for number, (_, test) in enumerate(tests))
            self._connection.execute(
                f"CREATE TABLE judged AS SELECT shard, row, key, CASE {cases} ELSE -1 END AS reason FROM joined"
            )
            counts = [f"count(*) FILTER ({tests[0][1]})"]
            counts += [f"count(*) FILTER (status = 'ok' AND ({test}))" for _, test in tests[1:]]
            (in_all,) = self._all(f"SELECT {', '.join(counts)} FROM joined")
        first = {reason: count for reason, count in self._all("SELECT reason, count(*) FROM judged GROUP BY reason")}
        return [Reason(text, first.get(i, 0), in_all[i]) for i, (text, _) in enumerate(tests)]

    def _check_boolean(self, term: Term) -> None:
        for (kind,) in self._all(f"SELECT typeof({term.sql}) FROM joined LIMIT 1"):
            if kind == "BOOLEAN":
                continue
            raise UsageError(f"--where: {term.text} is {kind}; allowed: what is true or false, such as {term.text} > 0")

    def chosen(self, is_selected: bool = True) -> Iterator[tuple[int, int, str]]:
        """Shard, row and key of the rows that were selected, or of the others, in the order of the corpus."""
        sign = "<" if is_selected else ">="
        cursor = self._connection.cursor()
        cursor.execute(f"SELECT shard, row, key FROM judged WHERE reason {sign} 0 ORDER BY shard, row")
        while rows := cursor.fetchmany(_BATCH):
            yield from rows

    def keep(self, columns: Sequence[ScoreColumn]) -> str:
        """Makes ready for ``values``; returns a digest of the selected rows and their values of these columns."""
        self._kept = list(columns)
        names = ", ".join(["shard", "row", "key", *(self.use(column) for column in columns)])
        self._connection.execute(f"CREATE TABLE kept AS SELECT {names} FROM joined ORDER BY shard, row")
        texts = ["shard", "row", "key", *(f"coalesce(CAST({self.use(column)} AS VARCHAR), '')" for column in columns)]
        selected = "kept SEMI JOIN (SELECT shard, row FROM judged WHERE reason < 0) USING (shard, row)"
        return str(self._all(f"SELECT bit_xor(md5_number(concat_ws('|', {', '.join(texts)}))) FROM {selected}")[0][0])

    def values(self, shard: int) -> list[dict[ScoreColumn, Any]]:
        """The values of the kept columns in each row of a shard."""
        names = ", ".join(["row", *(self.use(column) for column in self._kept)])
        rows = self._all(f"SELECT {names} FROM kept WHERE shard = {shard:d} ORDER BY row")
        return [dict(zip(self._kept, row[1:], strict=True)) for row in rows]


def _connect(folder: str) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(f"{folder}/rows.duckdb")
    connection.execute(f"SET temp_directory = '{folder}/spilled'")
    for name, value in _SETTINGS.items():
        connection.execute(f"SET {name} = {value}")
    connection.execute("SET lock_configuration = true")
    return connection


def _find(name: str, known: Iterable[str]) -> str | None:
    """A name as it is spelled, or one that differs from it in case alone."""
    names = list(known)
    return name if name in names else next((one for one in names if one.lower() == name.lower()), None)


def _ambiguous(column: ScoreColumn) -> UsageError:
    allowed = ", ".join(f'"{relation}".{column.column}' for relation in column.relations)
    return UsageError(f"column {column.column!r} differs between {', '.join(column.relations)}; allowed: {allowed}")


@contextmanager
def _mistakes() -> Iterator[None]:
    """Turns an error of DuckDB's about the condition into one line."""
    try:
        yield
    except duckdb.Error as error:
        text = str(error).partition("\nLINE ")[0].partition("\n\n")[0]
        raise UsageError(f"--where can't be computed: {' '.join(text.split())[:300]}") from error
