"""One shard: a tar of images and a Parquet file of rows, streamed, then committed."""

import hashlib
import json
import logging
import tarfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from hybridiff.corpus.columns import IMAGE, RowSettings, metadata_schema
from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.images import encode_image
from hybridiff.corpus.names import marker_name, metadata_name, stats_name, tar_name
from hybridiff.corpus.results import Result
from hybridiff.corpus.rows import RowsFile, row_json
from hybridiff.secrets import hide, one_line
from hybridiff.storage.lease import LeaseLost
from hybridiff.storage.publish import Publication, publish_bytes, sweep_leftovers

_log = logging.getLogger(__name__)
_COPIED = 1 << 20  # bytes of a file that go into the tar at once
_EMBEDDED = 64  # rows with images in a row group, and in memory


class ShardWriter:
    """Writes a shard in plan order. Nothing of it is visible before ``commit``; call ``discard`` if that is not to come.

    Args:
        corpus: Where the shard goes.
        index: Of the shard.
        settings: The columns that are equal in all rows.
        user_schema: The user's own columns.
        image_format: png, jpg or webp; also the file name extension.
        quality: See ``encode_image``.
        require: Called at the start and before anything is published; raises ``LeaseLost`` if the shard is another's by now.
            Given, a marker that is there already stays and is such a case too, and what owners before this one left is removed
            only after the commit: one of them may still be at it, and a commit marker tells it to give way.
        sidecar: Whether the tar holds each image's row as JSON.
        embed_images: Whether the Parquet file holds the images too.

    Raises:
        LeaseLost: If ``require`` does.
    """

    def __init__(
        self,
        corpus: Corpus,
        index: int,
        settings: RowSettings,
        user_schema: pa.Schema,
        image_format: str,
        quality: int,
        require: Callable[[], None] | None = None,
        sidecar: bool = True,
        embed_images: bool = False,
    ) -> None:
        from webdataset import TarWriter  # it imports torch, which takes seconds and is not for those who only read

        self.corpus, self.index = corpus, index
        self._require = require
        self.still_ours()
        self._settings = asdict(settings)
        self._schema = metadata_schema(user_schema, embed_images)
        self._image_format, self._quality = image_format, quality
        self._sidecar, self._embed_images = sidecar, embed_images
        self._rows = RowsFile(corpus, metadata_name(index), self._schema, _EMBEDDED if embed_images else None, require is None)
        self._handle = Publication(corpus.fs, corpus.target(tar_name(index)), sweep=require is None)
        self._tar = TarWriter(self._handle, encoder=False, mtime=0)
        self._tar.tarstream = tarfile.TarFile(  # its own passes on pieces of 10 KB
            fileobj=self._handle,  # type: ignore[arg-type]
            mode="w",
            format=tarfile.PAX_FORMAT,  # the old format's names end at 100 bytes
            copybufsize=_COPIED,
        )

    def write(self, result: Result, encoded: bytes | None = None, sha256: str | None = None) -> None:
        """Appends a sample.

        Args:
            result: What became of it.
            encoded: Its image file, if the caller has encoded it already, as on another thread.
            sha256: Of ``encoded``, likewise.
        """
        assert (result.image is None) == (result.error is not None), result.sample.key
        if result.image is not None and encoded is None:
            encoded = encode_image(result.image, self._image_format, self._quality)
        if encoded is not None and sha256 is None:
            sha256 = hashlib.sha256(encoded).hexdigest()
        row = self._row(result, sha256)
        if encoded is not None:
            files = {self._image_format: encoded, "txt": result.sample.prompt.encode()}
            files |= {"json": row_json(row)} if self._sidecar else {}
            self._tar.write({"__key__": result.sample.key, **files})
            if self._embed_images:
                row |= {IMAGE.name: {"bytes": encoded, "path": f"{result.sample.key}.{self._image_format}"}}
        self._rows.append(row)

    def commit(self, timings: dict[str, Any]) -> dict[str, Any]:
        """Publishes the tar, the rows, the timings and last the marker, which it returns.

        Raises:
            LeaseLost: If the shard is another's by now.
        """
        self._tar.close()
        self._rows.close()
        self.corpus.check_there()
        self.still_ours()
        return self._publish(timings)

    def _publish(self, timings: dict[str, Any]) -> dict[str, Any]:
        """All that ``commit`` makes visible, once the tar and the rows are whole."""
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
        with suppress(Exception):  # the shard is committed, whatever is left of others' tries
            for name in (tar_name, metadata_name, stats_name, marker_name):
                sweep_leftovers(self.corpus.fs, self.corpus.target(name(self.index)))

    def _keep_or_remove_marker(self) -> None:
        try:
            self.corpus.check_there()
        except FileNotFoundError:  # removed meanwhile, and the marker has made its directory anew
            self.corpus.remove(marker_name(self.index))
            raise
        except Exception as error:  # the shard is committed; storage that stays away fails the next one
            _log.warning("shard %d is committed; whether the output is still there is not known: %s", self.index, one_line(error))

    def still_ours(self) -> None:
        """Raises ``LeaseLost`` if the shard is another's by now."""
        if self._require is not None:
            self._require()

    def discard(self) -> None:
        """Gives the shard up; without effect after ``commit``."""
        self._handle.discard()
        self._rows.discard()

    def _row(self, result: Result, sha256: str | None) -> dict[str, Any]:
        sample, image = result.sample, result.image
        file = f"{tar_name(self.index)}/{sample.key}.{self._image_format}"
        values = {
            "key": sample.key,
            "prompt": sample.prompt,
            "negative_prompt": sample.negative_prompt,
            "seed": sample.seed,
            "status": "error" if sha256 is None else "ok",
            "error": None if result.error is None else hide(result.error),
            "file": None if sha256 is None else file,
            "width": None if image is None else image.shape[1],
            "height": None if image is None else image.shape[0],
            "sha256": sha256,
            **self._settings,
            "steps_full": result.steps_full,
            "steps_half": result.steps_half,
            "steps_skipped": result.steps_skipped,
            "tau1": result.tau1,
            "tau2": result.tau2,
            "discrepancy": [float(value) for value in result.discrepancy],
            "prompt_truncated": result.prompt_truncated,
            **sample.columns,
        }
        return {name: values.get(name) for name in self._schema.names if name != IMAGE.name}

    def _add(self, row: dict[str, Any], files: dict[str, bytes]) -> None:
        """Appends a row and its files as they are, by extension."""
        if files:
            self._tar.write({"__key__": row["key"], **files})
        self._rows.append(row)
