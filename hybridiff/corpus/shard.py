"""Writing a shard: results in, a tar of images and a Parquet file of rows out, streamed, then committed."""

import hashlib
import json
import logging
import tarfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hybridiff.columns import IMAGE, RUN_COLUMNS, ValueSource, metadata_schema, row_of
from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.layout import marker_name, metadata_name, stats_name, tar_name
from hybridiff.corpus.sidecar import Sidecar
from hybridiff.images import Encoder
from hybridiff.prompts.rows import Sample
from hybridiff.secrets import one_line, redact
from hybridiff.storage.lease import LeaseLost
from hybridiff.storage.publish import Publication, publish_bytes, sweep_leftovers

_log = logging.getLogger(__name__)
_COPIED = 1 << 20  # bytes of a file that are copied into the tar at once
_EMBEDDED_ROWS = 64  # rows with images in a row group, and in memory


@dataclass(frozen=True)
class Result:
    """The outcome of one requested image: what the corpus and callbacks get.

    Args:
        sample: the request: key, prompt, negative prompt, seed and the user's columns.
        image: pixels, (height, width, 3) uint8, red, green, blue; None if the row failed.
        error: why the row failed, in one line; None if it did not.
        prompt_truncated: whether the prompt exceeded a text encoder's window.
        steps_full: number of sampling steps computed with both guidance branches.
        steps_half: number of sampling steps computed with one guidance branch.
        steps_skipped: number of sampling steps extrapolated from earlier ones.
        tau1: index of the first step that was not full, counted from 0; None if all were full.
        tau2: index of the step after the last that was not full.
        discrepancy: difference between the guidance branches, one value per full step.
    """

    sample: Sample
    image: NDArray[np.uint8] | None
    error: str | None
    prompt_truncated: bool
    steps_full: int
    steps_half: int
    steps_skipped: int
    tau1: int | None
    tau2: int | None
    discrepancy: list[float]


class ShardWriter:
    """Writes a shard in plan order. Nothing of it is visible before ``commit``; call ``discard`` if there will be none.

    Args:
        corpus: the corpus.
        index: index of the shard.
        run_values: values of the columns that are equal in all rows of a run, by name; see ``hybridiff.columns``.
        user_schema: the user's columns that the corpus carries.
        encoder: the encoder of the images.
        require: called at the start and before anything is published; raises ``LeaseLost`` if the shard is another's by now.
            Given, a marker that exists already stays and is such a case too, and what owners before this one left is removed
            only after the commit: one of them may still be writing, and a commit marker stops it.
        sidecar: whether the tar holds each image's row as JSON.
        embed_images: whether the Parquet file holds the images too.

    Raises:
        LeaseLost: ``require`` does.
    """

    def __init__(
        self,
        corpus: Corpus,
        index: int,
        run_values: Mapping[str, Any],
        user_schema: pa.Schema,
        encoder: Encoder,
        require: Callable[[], None] | None = None,
        sidecar: bool = True,
        embed_images: bool = False,
    ) -> None:
        from webdataset import TarWriter  # it imports torch, which takes seconds and is not for those who only read

        assert run_values.keys() == RUN_COLUMNS, run_values.keys() ^ RUN_COLUMNS
        self.corpus, self.index = corpus, index
        self._require = require
        self.still_ours()
        self._run_values, self._encoder = run_values, encoder
        self._schema = metadata_schema(user_schema, embed_images)
        self._embed_images = embed_images
        self._sidecar = Sidecar(self._schema) if sidecar else None
        most = _EMBEDDED_ROWS if embed_images else None
        self._rows = _RowsFile(corpus, metadata_name(index), self._schema, most, sweep=require is None)
        self._handle = Publication(corpus.fs, corpus.target(tar_name(index)), sweep=require is None)
        self._tar = TarWriter(self._handle, encoder=False, mtime=0)
        self._tar.tarstream = tarfile.TarFile(  # its own copies pieces of 10 KB
            fileobj=self._handle,  # type: ignore[arg-type]
            mode="w",
            format=tarfile.PAX_FORMAT,  # names of the old format end at 100 bytes
            copybufsize=_COPIED,
        )

    def write(self, result: Result, encoded: bytes | None = None, sha256: str | None = None) -> None:
        """Appends a sample.

        Args:
            result: the sample's outcome.
            encoded: its image file, if the caller has encoded it already, as on another thread.
            sha256: SHA-256 of ``encoded`` in hexadecimal, if it is given.
        """
        assert (result.image is None) == (result.error is not None), result.sample.key
        if result.image is not None and encoded is None:
            encoded = self._encoder.encode(result.image)
        if encoded is not None and sha256 is None:
            sha256 = hashlib.sha256(encoded).hexdigest()
        row = self._row(result, sha256)
        files: dict[str, bytes] = {}
        if encoded is not None:
            files = {self._encoder.image_format: encoded, "txt": result.sample.prompt.encode()}
            if self._embed_images:
                row[IMAGE.name] = {"bytes": encoded, "path": f"{result.sample.key}.{self._encoder.image_format}"}
        self._add(row, files)

    def commit(self, timings: dict[str, Any]) -> dict[str, Any]:
        """Publishes the tar, the rows, the timings and last the marker, which it returns.

        Raises:
            LeaseLost: the shard is another's by now.
        """
        self._tar.close()
        self._rows.close()
        self.corpus.check_there()
        self.still_ours()
        return self._publish(timings)

    def _publish(self, timings: dict[str, Any]) -> dict[str, Any]:
        """Makes visible what ``commit`` publishes, once the tar and the rows are whole."""
        fs, index, alone = self.corpus.fs, self.index, self._require is None
        self._handle.commit()
        self.still_ours()
        rows_handle = self._rows.commit()
        stats = json.dumps({"shard": index, "versions": self.corpus.versions, **timings}, indent=1, default=str) + "\n"
        publish_bytes(fs, self.corpus.target(stats_name(index)), stats.encode(), sweep=alone)
        marker = self._marker({tar_name(index): self._handle, metadata_name(index): rows_handle})
        text = json.dumps(marker, sort_keys=True, indent=1) + "\n"
        self.still_ours()
        try:
            publish_bytes(fs, self.corpus.target(marker_name(index)), text.encode(), exclusive=not alone, sweep=alone)
        except FileExistsError as error:
            raise LeaseLost(f"shard {index} was committed by another process in the meantime") from error
        self._keep_or_remove_marker()
        if not alone:
            self._sweep()
        return marker

    def _marker(self, files: dict[str, Publication]) -> dict[str, Any]:
        return {
            "shard": self.index,
            "fingerprint": self.corpus.fingerprint,
            "files": {name: {"bytes": file.bytes, "sha256": file.sha256} for name, file in files.items()},
            "rows": self._rows.count,
            "ok": self._rows.count - self._rows.failed,
            "failed": self._rows.failed,
        }

    def _sweep(self) -> None:
        with suppress(Exception):  # the shard is committed; others' remains do no harm
            for name in (tar_name, metadata_name, stats_name, marker_name):
                sweep_leftovers(self.corpus.fs, self.corpus.target(name(self.index)))

    def _keep_or_remove_marker(self) -> None:
        try:
            self.corpus.check_there()
        except FileNotFoundError:  # removed meanwhile, and the marker has created its directory again
            self.corpus.remove(marker_name(self.index))
            raise
        except Exception as error:  # the shard is committed; storage that stays away fails the next one
            _log.warning("shard %d is committed; whether the output still exists is not known: %s", self.index, one_line(error))

    def still_ours(self) -> None:
        """Raises ``LeaseLost`` if the shard is another's by now."""
        if self._require is not None:
            self._require()

    def discard(self) -> None:
        """Drops the shard; without effect after ``commit``."""
        self._handle.discard()
        self._rows.discard()

    def _row(self, result: Result, sha256: str | None) -> dict[str, Any]:
        """The row of a result, in the schema's order, without an embedded image."""
        sample, image = result.sample, result.image
        file = {
            "status": "error" if sha256 is None else "ok",
            "error": None if result.error is None else redact(result.error),
            "file": None if sha256 is None else f"{tar_name(self.index)}/{sample.key}.{self._encoder.image_format}",
            "width": None if image is None else image.shape[1],
            "height": None if image is None else image.shape[0],
            "sha256": sha256,
        }
        own = row_of(
            {ValueSource.PROMPT: sample, ValueSource.RESULT: result, ValueSource.RUN: self._run_values, ValueSource.FILE: file}
        )
        values = own | sample.columns
        return {name: values.get(name) for name in self._schema.names if name != IMAGE.name}

    def _add(self, row: dict[str, Any], files: dict[str, bytes]) -> None:
        """Appends a row and its files by extension; its JSON is made here unless it is among them."""
        if files:
            if self._sidecar is not None:
                files = files | {"json": self._sidecar.encode(row, files.get("json"))}
            self._tar.write({"__key__": row["key"], **files})
        self._rows.append(row)


class _RowsFile:
    """The Parquet file of a shard.

    Args:
        corpus: the corpus.
        name: name of the file in it.
        schema: schema of the rows.
        most: number of rows held in memory; None holds all until the commit.
        sweep: whether what an earlier attempt left is removed first.
    """

    def __init__(self, corpus: Corpus, name: str, schema: pa.Schema, most: int | None, sweep: bool) -> None:
        self.count = self.failed = 0
        self._corpus, self._name, self._schema, self._most = corpus, name, schema, most
        self._sweep = sweep
        self._waiting: list[dict[str, Any]] = []
        self._handle: Publication | None = None
        self._file: pq.ParquetWriter | None = None

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row, under the schema's names."""
        self.count += 1
        self.failed += row["status"] == "error"
        self._waiting.append(row)
        if len(self._waiting) == self._most:
            self._flush()

    def close(self) -> None:
        """Writes the rest."""
        try:
            if self._waiting or self._file is None:
                self._flush()
            assert self._file is not None
            self._file.close()
        except BaseException:
            self.discard()
            raise

    def commit(self) -> Publication:
        """Publishes the file, once closed, and returns its handle."""
        assert self._handle is not None
        self._handle.commit()
        return self._handle

    def discard(self) -> None:
        """Drops the file; without effect after ``commit``."""
        if self._handle is not None:
            self._handle.discard()

    def _flush(self) -> None:
        if self._handle is None:
            self._handle = Publication(self._corpus.fs, self._corpus.target(self._name), sweep=self._sweep)
        if self._file is None:
            self._file = pq.ParquetWriter(self._handle, self._schema)
        self._file.write_table(pa.Table.from_pylist(self._waiting, schema=self._schema))
        self._waiting.clear()
