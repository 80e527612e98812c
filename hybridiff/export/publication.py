"""What of a corpus is published: the files that its commit markers count, and what describes them.

Only what a marker counts is read as data, and each file is compared with its marker while it is sent. The run record comes first,
and the card last, so that what is published is a corpus at any time.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from hybridiff.columns import SCHEMA
from hybridiff.corpus.card import dataset_card
from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.layout import CARD, EVALUATIONS, RUN_RECORD, SHEET, marker_name, metadata_name, tar_name
from hybridiff.corpus.reader import read_schema, whole_marker
from hybridiff.corpus.record import option
from hybridiff.corpus.splits import SPLITS, no_corpus, open_corpora
from hybridiff.errors import UsageError
from hybridiff.export.licence import Licence, published_card
from hybridiff.storage.filesystem import is_local
from hybridiff.storage.folder import SMALL_FILE, Folder, parse_json, read_each

_RESULTS = (".json", ".parquet", ".html")
_LARGEST_RESULT = 4 << 30  # bytes: an evaluation has a row for each image, and embeddings in them where these were asked for


@dataclass(frozen=True)
class DataFile:
    """A file that a marker counts.

    Args:
        corpus: its corpus.
        shard: index of its shard.
        name: its name in the corpus.
        target: its name where it is published.
        size: bytes.
        sha256: SHA-256 in hexadecimal.
    """

    corpus: Corpus
    shard: int
    name: str
    target: str
    size: int
    sha256: str


@dataclass(frozen=True)
class SmallFile:
    """A small file that is published as it is here.

    Args:
        target: its name where it is published.
        content: its content.
    """

    target: str
    content: bytes


@dataclass(frozen=True)
class ShardFiles:
    """A shard: its tar, its rows, and the marker that counts them."""

    data: tuple[DataFile, DataFile]
    marker: SmallFile


@dataclass(frozen=True)
class Part:
    """A corpus that is published: all of a publication, or one of its splits.

    Args:
        corpus: the corpus.
        prefix: what its names begin with where it is published: empty, or the name of its split and a slash.
        run: its run record.
        record: the same as it is in the file.
        shards: its committed shards.
        planned: number of shards of a whole one.
    """

    corpus: Corpus
    prefix: str
    run: dict[str, Any]
    record: SmallFile
    shards: list[ShardFiles]
    planned: int

    @property
    def missing(self) -> int:
        """Number of shards that are not committed."""
        return self.planned - len(self.shards)

    def option(self, section: str, name: str) -> Any:
        """An option of its configuration."""
        return option(self.run["configuration"], f"{section}.{name}")

    def schema(self) -> pa.Schema:
        """The columns of its rows."""
        return read_schema(self.corpus, self.shards[0].data[0].shard) if self.shards else SCHEMA

    def counts(self) -> dict[str, int]:
        """``rows``, ``ok`` and ``failed`` of its committed shards."""
        markers = [parse_json(shard.marker.content) for shard in self.shards]
        return {name: sum(marker[name] for marker in markers) for name in ("rows", "ok", "failed")}


@dataclass(frozen=True)
class Publishable:
    """A corpus, or the splits of a selection, as they are published.

    Args:
        folder: its directory.
        parts: the corpora in it.
    """

    folder: Folder
    parts: list[Part]

    @property
    def missing(self) -> int:
        """Number of shards that are not committed."""
        return sum(part.missing for part in self.parts)

    @property
    def shards(self) -> list[ShardFiles]:
        """All committed shards."""
        return [shard for part in self.parts for shard in part.shards]

    @property
    def model(self) -> str:
        """The model that generated the images."""
        return str(self.parts[0].option("model", "path") or "-")

    def records(self) -> list[SmallFile]:
        """What comes first: what identifies this corpus."""
        splits = [SmallFile(SPLITS, self.folder.read(SPLITS))] if self.parts[0].prefix else []
        return [*splits, *(part.record for part in self.parts)]

    def descriptions(self, licence: Licence) -> list[SmallFile]:
        """What comes last: evaluations, contact sheets and cards."""
        found = []
        for part in self.parts:
            found += list(_results(part))
            found += _optional(part.corpus, SHEET, part.prefix)
            if part.prefix:
                found.append(SmallFile(part.prefix + CARD, self._card(part, licence).encode()))
        if self.parts[0].prefix:
            card = _optional(self.folder, CARD, "")
            text = card[0].content.decode(errors="replace") if card else f"# Images by {self.model}\n"
            files = [{"split": part.prefix[:-1], "path": part.prefix + _shown(part)} for part in self.parts if part.shards]
            return [*found, SmallFile(CARD, published_card(text, licence, self.model, files, self._note()).encode())]
        return [*found, SmallFile(CARD, self._card(self.parts[0], licence).encode())]

    def _card(self, part: Part, licence: Licence) -> str:
        own = _optional(part.corpus, CARD, "") if not part.missing else []
        text = own[0].content.decode(errors="replace") if own else dataset_card(part.run, part.counts(), part.schema())
        return published_card(text, licence, self.model, _shown(part), self._note())

    def _note(self) -> str:
        if not self.missing:
            return ""
        planned = sum(part.planned for part in self.parts)
        return f"This is a part of the corpus: {planned - self.missing} of its {planned} shards.\n"


def read_publishable(url: str) -> Publishable:
    """Reads run records and all markers of a corpus, or of the splits of a selection.

    Raises:
        UsageError: there is no corpus, nothing of it is committed, or a marker is damaged.
    """
    folder = Corpus(url, "CORPUS")
    _check_inside(folder, CARD)
    parts = [_read_part(corpus, f"{name}/" if name else "") for name, corpus in open_corpora(url, "CORPUS").items()]
    found = Publishable(folder, parts)
    if not found.shards:
        raise UsageError(f"{folder.url} has no committed shard; allowed: a corpus with some")
    return found


def _read_part(corpus: Corpus, prefix: str) -> Part:
    run = corpus.read_run()
    if run is None:
        raise no_corpus(corpus)
    planned = run["plan"].get("shards")
    if type(planned) is not int:
        raise UsageError(f"{corpus.url}: {RUN_RECORD} is damaged: its plan has {planned!r} shards")
    committed = sorted(index for index in corpus.committed() if index < planned)
    shards = list(read_each(partial(_shard, corpus, prefix, run["fingerprint"]), committed).values())
    for name in (CARD, SHEET, *_result_names(corpus)):
        _check_inside(corpus, name)
    record = SmallFile(prefix + RUN_RECORD, corpus.read(RUN_RECORD))
    return Part(corpus, prefix, run, record, shards, planned)


def _shard(corpus: Corpus, prefix: str, fingerprint: str, index: int) -> ShardFiles:
    marker = whole_marker(corpus, fingerprint, index)
    files = [
        DataFile(corpus, index, name, prefix + name, marker["files"][name]["bytes"], marker["files"][name]["sha256"])
        for name in (tar_name(index), metadata_name(index))
    ]
    return ShardFiles((files[0], files[1]), SmallFile(prefix + marker_name(index), corpus.read(marker_name(index))))


def _shown(part: Part) -> str:
    """The files that a viewer shows: rows with the images inside, else the tars, which have both."""
    return "metadata/*.parquet" if part.option("output", "embed_images") else "images/*.tar"


def _optional(folder: Folder, name: str, prefix: str, most: int = SMALL_FILE) -> list[SmallFile]:
    try:
        return [SmallFile(prefix + name, folder.read(name, most))]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _results(part: Part) -> Iterator[SmallFile]:
    """The results of evaluations."""
    for name in _result_names(part.corpus):
        yield from _optional(part.corpus, name, part.prefix, _LARGEST_RESULT)


def _result_names(corpus: Corpus) -> list[str]:
    names = (name for name in corpus.names(EVALUATIONS) if name.endswith(_RESULTS) and not name.startswith("."))
    return [f"{EVALUATIONS}/{name}" for name in names]


def _check_inside(folder: Folder, name: str) -> None:
    """Refuses to publish what a link of a local corpus leads to outside of it: no marker says what that is."""
    if not is_local(folder.fs):
        return
    leads_to, inside = os.path.realpath(folder.path(name)), os.path.realpath(folder.root)
    if not leads_to.startswith(f"{inside}/"):
        raise UsageError(f"{name} in {folder.url} is a link out of it, to {leads_to}; allowed: a file of the corpus itself")
