"""Copying the rows of a selection into a corpus of its own, or one for each split: shard by shard, under leases.

Shards are written as those of a run are: tar and Parquet first, the commit marker last. So the same command goes on where a
killed one has stopped, and several of them share the work. The source is only read.
"""

import hashlib
import io
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image

from hybridiff.columns import CAPTION, RUN_COLUMNS, SCHEMA
from hybridiff.corpus.card import write_card
from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.layout import CARD, LEASES, RUN_RECORD, lease_of, tar_name
from hybridiff.corpus.reader import damaged, row_image, shard_samples
from hybridiff.corpus.shard import ShardWriter
from hybridiff.corpus.splits import SPLITS, write_splits
from hybridiff.corpus.writable import LEFTOVER, check_writable
from hybridiff.errors import StorageError, UsageError
from hybridiff.export.scored_rows import ScoreColumn
from hybridiff.export.selection import Selection
from hybridiff.export.split_card import split_card
from hybridiff.images import Encoder
from hybridiff.secrets import one_line
from hybridiff.storage.lease import LEASE_S, LeaseLost, Leases
from hybridiff.storage.owner import Owner

_ENCODED_AT_ONCE = 16  # images
_THREADS = 4
_Sample = tuple[dict[str, Any], dict[str, bytes]]  # a row and its files by extension


@dataclass(frozen=True)
class Copied:
    """How the copying ended.

    Args:
        written: number of shards that this process wrote.
        left: number of shards that other processes are writing.
    """

    written: int
    left: int


class ShardCopier(ShardWriter):
    """Writes a shard of rows that exist already."""

    def copy(self, row: dict[str, Any], files: dict[str, bytes]) -> None:
        """Appends a row.

        Args:
            row: values of the columns.
            files: the image by the extension of its format, and ``txt``.
        """
        extension = next(name for name in files if name != "txt")
        file = f"{tar_name(self.index)}/{row['key']}.{extension}"
        values = {name: row.get(name) for name in self._schema.names} | {"file": file}
        if self._embed_images:
            values["image"] = {"bytes": files[extension], "path": f"{row['key']}.{extension}"}
        self._add(values, files)


class SourceReader:
    """Reads rows with their files; goes on within a shard where the last call has stopped, if that is possible.

    Args:
        selection: the plan.
    """

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        known = set(selection.scored.schema.names)
        wanted = [*SCHEMA.names, *(one.field.name for one in selection.carried if one.score is None)]
        wanted += [column.column for column in selection.caption_columns.values() if not column.is_score]
        self._text = "prompt" if selection.source.option("output", CAPTION, None) is None else CAPTION  # the column of the texts
        wanted.append(self._text)
        self._columns = [name for name in dict.fromkeys(wanted) if name in known]
        self._shard, self._next = -1, 0
        self._samples: Generator[_Sample, None, None] | None = None
        self._scores: list[dict[ScoreColumn, Any]] = []

    def read(self, shard: int, places: Sequence[int]) -> Iterator[_Sample]:
        """The samples at these positions of a shard, in order, as the selection has them.

        Raises:
            ShardDamaged: the shard is not what its marker says.
        """
        if self._samples is None or shard != self._shard or places[0] < self._next:
            self.close()
            self._shard, self._next = shard, 0
            self._samples = shard_samples(self._selection.source.corpus, shard, self._columns)
            self._scores = self._selection.scored.values(shard)
        for place in places:
            row, files = next(islice(self._samples, place - self._next, None))
            self._next = place + 1
            yield self._as_selected(row, files, self._scores[place])

    def close(self) -> None:
        """Closes the files of the shard that was read last."""
        if self._samples is not None:
            self._samples.close()
            self._samples = None

    def _as_selected(self, row: dict[str, Any], files: dict[str, bytes], scores: dict[ScoreColumn, Any]) -> _Sample:
        """A row with its scores and caption, and its image and text."""
        selection, corpus = self._selection, self._selection.source.corpus
        extension = str(row["file"]).rpartition(".")[2]
        image = row_image(corpus, self._shard, row["key"], files.get(extension), row["sha256"])
        if files.get("txt") != str(row.get(self._text)).encode():
            raise damaged(corpus, tar_name(self._shard), f"the text of {row['key']!r} is not the one of its row")
        kept = {extension: image, "txt": files["txt"]}
        values = row | {one.field.name: scores[one.score] for one in selection.carried if one.score is not None}
        if (caption := selection.options.caption) is not None:
            columns = selection.caption_columns
            text = caption.render(lambda name: scores[columns[name]] if columns[name].is_score else row[columns[name].column])
            kept["txt"], values[CAPTION] = text.encode(), text
        return values, kept


def select(
    selection: Selection,
    url: str,
    owner: Owner,
    job_ended: Callable[[Owner], bool] = lambda _: False,
    report: Callable[[str], None] = lambda _: None,
) -> Copied:
    """Copies the rows of a selection.

    Args:
        selection: the plan.
        url: directory of the new corpus, or of the directories of its splits.
        owner: this process.
        job_ended: whether the batch job of an owner of leases has ended.
        report: called with a line for each shard that was written.

    Raises:
        UsageError: the directory holds something else, or another selection.
        StorageError: the storage failed.
    """
    splits = [split.name for split in selection.options.splits]
    check_output(selection, url)
    corpora = [_output(url, name) for name in selection.sizes]
    for part, corpus in enumerate(corpora):
        check_writable(corpus)
        corpus.start_run(selection.record(corpus.url, part))
    root = _output(url)
    if splits:
        write_splits(root, splits)
    written = 0
    with closing(SourceReader(selection)) as reader:
        for part, corpus in enumerate(corpora):
            written += _copy_all(selection, part, corpus, reader, owner, job_ended, report)
    left = 0
    for part, corpus in enumerate(corpora):
        left += selection.shards(part) - len(corpus.committed())
        write_card(corpus)
    if splits and not left:
        root.publish(CARD, split_card(dict(zip(splits, corpora, strict=True))).encode())
    return Copied(written, left)


def check_output(selection: Selection, url: str) -> None:
    """Makes sure that a directory is empty, or holds what this selection has begun.

    Raises:
        UsageError: it is the source, lies in it, or holds something else.
    """
    folder, source = _output(url), selection.source.corpus
    if source.holds(folder):
        raise UsageError(f"--output is {folder.url}, which is in the source itself; allowed: another directory")
    names = [name for name in folder.names("") if not LEFTOVER.fullmatch(name)]
    run = folder.read_run() if RUN_RECORD in names else None
    splits = [split.name for split in selection.options.splits]
    begun = run is not None and "select" in run["configuration"]
    if splits:
        for name in splits:
            try:
                folder.target(f"{name}/{RUN_RECORD}")
            except StorageError as error:  # before anything is written, links out of a directory are the user's
                raise UsageError(f"--output is {folder.url}: {error}") from error
        parts = [_output(url, name).read_run() for name in splits if name in names]
        ours = all(one is None or "select" in one["configuration"] for one in parts)
        begun = not begun and ours and not set(names) - {*splits, SPLITS, CARD} and (SPLITS in names or CARD not in names)
    if names and not begun:
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise UsageError(
            f"--output is {folder.url}, which holds {shown}; allowed: a new directory, or one that this command began"
        )


def _output(url: str, split: str = "") -> Corpus:
    """The directory of the new corpus, or of one of its splits."""
    return Corpus(f"{url.rstrip('/')}/{split}" if split else url, "--output")


def _copy_all(
    selection: Selection,
    part: int,
    corpus: Corpus,
    reader: SourceReader,
    owner: Owner,
    job_ended: Callable[[Owner], bool],
    report: Callable[[str], None],
) -> int:
    """Writes the shards of a split that are neither committed nor held by others; returns how many it wrote."""
    indices = range(selection.shards(part))
    left: list[str] = []

    def names_left(look: bool) -> list[str]:
        if look or not left:
            corpus.check_there()
            done = corpus.committed()
            left[:] = [lease_of(index) for index in indices if index not in done]
        return left

    leases = None
    if corpus.creates_if_absent:
        leases = Leases(corpus, LEASES, LEASE_S, owner, is_done=corpus.is_committed, job_ended=job_ended)
    written = 0
    with leases.heartbeat() if leases else nullcontext():
        while names_left(True) and (name := leases.acquire_next(names_left) if leases else left[0]) is not None:
            require = partial(leases.require, name) if leases else None
            try:
                _copy_shard(selection, part, int(name), corpus, reader, require)
                written += 1
                report(f"{corpus.url}: shard {name} written, {len(names_left(True))} left")
            except LeaseLost:  # another process has it, or has committed it
                continue
            finally:
                if leases:
                    leases.release(name)
    return written


def _copy_shard(
    selection: Selection, part: int, index: int, corpus: Corpus, reader: SourceReader, require: Callable[[], None] | None
) -> None:
    encoder, encoded = selection.encoder()
    sidecar = selection.source.option("output", "sidecar", "json") == "json"
    embedded = bool(selection.source.option("output", "embed_images", False))
    values = dict.fromkeys(RUN_COLUMNS)
    writer = ShardCopier(corpus, index, values, selection.schema(), encoder, require, sidecar, embedded)
    try:
        samples = (sample for shard, places in selection.places(part, index) for sample in reader.read(shard, places.tolist()))
        for row, files in _encoded(samples, encoder) if encoded else samples:
            writer.copy(row, files)
        writer.commit({})
    except BaseException:
        writer.discard()
        raise


def _encoded(samples: Iterator[_Sample], encoder: Encoder) -> Iterator[_Sample]:
    """The samples with their images in another format; some are encoded at once."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="encode") as threads:
        while some := list(islice(samples, _ENCODED_AT_ONCE)):
            yield from threads.map(partial(_encode, encoder), some)


def _encode(encoder: Encoder, sample: _Sample) -> _Sample:
    row, files = sample
    (image,) = (data for name, data in files.items() if name != "txt")
    try:
        with Image.open(io.BytesIO(image)) as opened:
            pixels = np.asarray(opened.convert("RGB"))
    except Exception as error:  # Pillow's readers raise many types
        raise StorageError(f"the image of {row['key']!r} can't be decoded ({one_line(error)})") from error
    data = encoder.encode(pixels)
    return row | {"sha256": hashlib.sha256(data).hexdigest()}, {encoder.image_format: data, "txt": files["txt"]}
