"""Encoding and writing on background threads, while the next batch is denoised."""

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridiff.corpus.layout import tar_name
from hybridiff.corpus.reader import ShardDamaged
from hybridiff.corpus.shard import Result, ShardWriter
from hybridiff.errors import StorageError
from hybridiff.images import Encoder
from hybridiff.secrets import one_line
from hybridiff.storage.lease import LeaseLost

_log = logging.getLogger(__name__)
THREADS = 4  # encode images
_Image = Future[tuple[bytes, str]] | None  # its file and SHA-256, once encoded


class BackgroundWriter:
    """Accepts batches in order and writes shards, at most ``depth`` batches behind, and never more than one shard behind.

    Args:
        open_shard: returns the writer of a shard by its index.
        encoder: the encoder of the images.
        depth: number of batches that may wait; then ``put`` waits too, which bounds memory. With the first batch of a shard it
            waits for the shard before, so that a killed process loses one shard and no more than a batch of the next.
        threads: number of threads that encode images.
        closed: called with the index of each finished shard: committed, found to be another owner's by now, or lost.
        is_transient: whether an error is transient and loses only its shard; any other error ends the run.

    Attributes:
        lost: reasons why shards could not be written, by index.
    """

    IN_A_ROW = 3  # lost shards in succession end the run

    def __init__(
        self,
        open_shard: Callable[[int], ShardWriter],
        encoder: Encoder,
        depth: int = 4,
        threads: int = THREADS,
        closed: Callable[[int], None] = lambda _: None,
        is_transient: Callable[[Exception], bool] = lambda _: False,
    ) -> None:
        self._open_shard, self._closed, self._is_transient = open_shard, closed, is_transient
        self.lost: dict[int, str] = {}
        self._reassigned: set[int] = set()  # shards that are another owner's by now
        self._lost_in_a_row = 0
        self._encoder = encoder
        self._depth = depth
        self._encoders = ThreadPoolExecutor(threads, thread_name_prefix="encode")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")  # one thread keeps the order
        self._waiting: list[Future[None]] = []
        self._latest: int | None = None  # shard of the latest batch
        self._shard: ShardWriter | None = None
        self._started = 0.0
        self._failed = False

    def put(self, shard: int, results: Sequence[Result], last: bool, timings: dict[str, Any]) -> None:
        """Queues a batch; with ``last`` the shard is committed after it. Raises an earlier batch's error, if there was one."""
        encoded = [self._encoders.submit(self._encode, r.image) if r.image is not None else None for r in results]
        behind = self._depth - 1 if shard == self._latest else 0
        while self._waiting and (len(self._waiting) > behind or self._waiting[0].done()):
            self._waiting.pop(0).result()
        self._latest = shard
        self._waiting.append(self._writer.submit(self._write, shard, list(results), encoded, last, timings))

    def given_up(self, shard: int) -> bool:
        """Whether no more batches of a shard are needed: it could not be written, or is another owner's by now."""
        return shard in self.lost or shard in self._reassigned

    def close(self) -> None:
        """Waits until everything is written; raises the first error."""
        try:
            for future in self._waiting:
                future.result()
        finally:
            self.abort()

    def abort(self) -> None:
        """Drops waiting batches and the open shard: nothing of them becomes visible."""
        self._writer.shutdown(wait=True, cancel_futures=True)
        self._encoders.shutdown(wait=True, cancel_futures=True)
        self._waiting.clear()
        if self._shard is not None:
            self._shard.discard()
            self._shard = None

    def _encode(self, array: NDArray[np.uint8]) -> tuple[bytes, str]:
        """An image file and its SHA-256; both let other threads run meanwhile."""
        encoded = self._encoder.encode(array)
        return encoded, hashlib.sha256(encoded).hexdigest()

    def _write(self, shard: int, results: list[Result], encoded: list[_Image], last: bool, timings: dict[str, Any]) -> None:
        if self._failed or self.given_up(shard):  # a shard that lacks a batch must never be committed
            return
        try:
            self._append(shard, results, encoded, last, timings)
        except BaseException as error:
            if isinstance(error, Exception) and (lost := self._why_lost(error)):
                self._leave(shard, lost)
                return
            if isinstance(error, ShardDamaged):
                self._lose(shard, error)
                return
            self._lost_in_a_row += 1
            if isinstance(error, Exception) and self._is_transient(error) and self._lost_in_a_row < self.IN_A_ROW:
                self._lose(shard, error)
                return
            self._failed = True
            if isinstance(error, OSError) or (isinstance(error, Exception) and self._is_transient(error)):
                raise StorageError(f"{tar_name(shard)} and its rows could not be written: {one_line(error)}") from error
            raise

    def _why_lost(self, error: Exception) -> LeaseLost | None:
        """The error that the shard is another owner's, if this is why it failed: a new owner may have removed its files."""
        if isinstance(error, LeaseLost):
            return error
        with suppress(Exception):  # storage does not answer: the first error is reported
            try:
                if self._shard is not None:
                    self._shard.still_ours()
            except LeaseLost as lost:
                return lost
        return None

    def _leave(self, shard: int, lost: LeaseLost) -> None:
        _log.warning("%s", lost)  # the other's is the same shard
        self._reassigned.add(shard)
        self._lost_in_a_row = 0
        self._drop(shard)

    def _drop(self, shard: int) -> None:
        if self._shard is not None:
            self._shard.discard()
            self._shard = None
        self._close(shard)

    def _lose(self, shard: int, error: Exception) -> None:
        self.lost[shard] = one_line(error)
        self._drop(shard)

    def _append(self, shard: int, results: list[Result], encoded: list[_Image], last: bool, timings: dict[str, Any]) -> None:
        if self._shard is None:
            self._shard, self._started = self._open_shard(shard), time.time()
        assert self._shard.index == shard, f"shard {shard} before {self._shard.index} is complete"
        for result, image in zip(results, encoded, strict=True):
            data, sha256 = image.result() if image is not None else (None, None)
            self._shard.write(result, data, sha256=sha256)
        if last:
            self._finish(self._shard, timings)

    def _finish(self, writer: ShardWriter, timings: dict[str, Any]) -> None:
        writer.commit({**timings, "started_at": self._started, "committed_at": time.time()})
        self._shard = None
        self._lost_in_a_row = 0
        self._close(writer.index)

    def _close(self, index: int) -> None:
        with suppress(Exception):  # a lease that cannot be released expires
            self._closed(index)
