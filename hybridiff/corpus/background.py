"""Encoding and writing on background threads, while the next batch is denoised."""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from hybridiff.corpus.damage import ShardDamaged
from hybridiff.corpus.images import encode_and_hash
from hybridiff.corpus.results import Result
from hybridiff.corpus.shard import ShardWriter
from hybridiff.secrets import one_line
from hybridiff.storage.lease import LeaseLost

_log = logging.getLogger(__name__)
THREADS = 4  # that encode images
_Image = Future[tuple[bytes, str]] | None  # its file and SHA-256, once encoded


class BackgroundWriter:
    """Takes batches in order and writes shards, at most ``depth`` batches behind, and never more than one shard behind.

    Args:
        open_shard: Opens the writer of a shard by its index.
        image_format: png, jpg or webp.
        quality: Of jpg and webp.
        depth: Batches that may wait; then ``put`` waits too, which bounds memory. With the first batch of a shard it waits for
            the shard before, so that whoever is killed loses one shard and no more than a batch of the next.
        threads: That encode images.
        closed: Told each shard that is done with: committed, found to be another owner's by now, or lost.
        passing: Whether an error costs no more than the shard that it happened in; any other ends everything.

    Attributes:
        lost: Why shards could not be written, by index.
    """

    IN_A_ROW = 3  # shards lost one after another, after which it is no use to go on

    def __init__(
        self,
        open_shard: Callable[[int], ShardWriter],
        image_format: str,
        quality: int,
        depth: int = 4,
        threads: int = THREADS,
        closed: Callable[[int], None] = lambda _: None,
        passing: Callable[[Exception], bool] = lambda _: False,
    ) -> None:
        self._open_shard, self._closed, self._passing = open_shard, closed, passing
        self.lost: dict[int, str] = {}
        self._taken: set[int] = set()  # shards that turned out to be another owner's
        self._lost_in_a_row = 0
        self._format = (image_format, quality)
        self._depth = depth
        self._encoders = ThreadPoolExecutor(threads, thread_name_prefix="encode")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")  # one thread keeps the order
        self._waiting: list[Future[None]] = []
        self._latest: int | None = None  # the shard of the batch that was last handed over
        self._shard: ShardWriter | None = None
        self._started = 0.0
        self._failed = False

    def put(self, shard: int, results: Sequence[Result], last: bool, timings: dict[str, Any]) -> None:
        """Hands over a batch; with ``last`` the shard is committed after it. Raises what went wrong in an earlier batch."""
        encoded = [
            self._encoders.submit(encode_and_hash, r.image, *self._format) if r.image is not None else None for r in results
        ]
        behind = self._depth - 1 if shard == self._latest else 0
        while self._waiting and (len(self._waiting) > behind or self._waiting[0].done()):
            self._waiting.pop(0).result()
        self._latest = shard
        self._waiting.append(self._writer.submit(self._write, shard, list(results), encoded, last, timings))

    def given_up(self, shard: int) -> bool:
        """Whether no more batches of a shard are needed: it could not be written, or is another owner's by now."""
        return shard in self.lost or shard in self._taken

    def close(self) -> None:
        """Waits until everything is written; raises what went wrong."""
        try:
            for future in self._waiting:
                future.result()
        finally:
            self.abort()

    def abort(self) -> None:
        """Drops what waits and the open shard: nothing of it becomes visible."""
        self._writer.shutdown(wait=True, cancel_futures=True)
        self._encoders.shutdown(wait=True, cancel_futures=True)
        self._waiting.clear()
        if self._shard is not None:
            self._shard.discard()
            self._shard = None

    def _write(self, shard: int, results: list[Result], encoded: list[_Image], last: bool, timings: dict[str, Any]) -> None:
        if self._failed or self.given_up(shard):  # a shard that lacks a batch must never be committed
            return
        try:
            self._append(shard, results, encoded, last, timings)
        except BaseException as error:
            if isinstance(error, Exception) and (taken := self._why_taken(error)):
                self._give_way(shard, taken)
                return
            if isinstance(error, ShardDamaged):
                self._lose(shard, error)
                return
            self._lost_in_a_row += 1
            if isinstance(error, Exception) and self._passing(error) and self._lost_in_a_row < self.IN_A_ROW:
                self._lose(shard, error)
                return
            self._failed = True
            if isinstance(error, Exception) and self._passing(error) and not isinstance(error, OSError):
                raise OSError(f"{type(error).__name__}: {error}") from error  # storage clients raise types of their own
            raise

    def _why_taken(self, error: Exception) -> LeaseLost | None:
        """That the shard is another's, where this is why it failed: a new owner may have cleared its files away."""
        if isinstance(error, LeaseLost):
            return error
        with suppress(Exception):  # storage that is away: the error itself is to be told
            try:
                if self._shard is not None:
                    self._shard.still_ours()
            except LeaseLost as taken:
                return taken
        return None

    def _give_way(self, shard: int, taken: LeaseLost) -> None:
        _log.warning("%s", taken)  # the other's is as good
        self._taken.add(shard)
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
