"""Failure handling in a group: all ranks leave a batch together where one of them fails, so that none waits in a collective.

The ranks compare a failure flag before each collective of a batch, and at its end. The flag travels between hosts while the
device still works on the step. Memory that a collective needs is allocated before the comparison. So a rank that fails, wherever
it is, makes its next comparison at the end of its batch, and the others make theirs before the collective that it will miss.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils.memory import should_reduce_batch_size

from hybridiff.errors import UsageError
from hybridiff.parallel.api import Handle
from hybridiff.parallel.exchange import Exchange, PeerLost
from hybridiff.secrets import shortened

REASON_BYTES = 256


class BatchFailed(Exception):
    """A batch failed on at least one rank of the group; raised on all of its ranks with the same reason, in one line."""


class OutOfMemory(BatchFailed):
    """A batch was too large for the memory of at least one rank of the group; raised on all of its ranks."""


class _LeaveBatch(Exception):
    """Another rank has failed: raised through the pipeline to leave the batch."""


class FailureGuard:
    """Watches the batches of one rank's parallelized pipeline.

    Args:
        handle: handle of the pipeline; its exchange compares failure flags from now on.
        device: device of the group's tensor collectives.
    """

    def __init__(self, handle: Handle, device: torch.device) -> None:
        self._handle = handle
        self._device = device
        self._own = Exchange(handle.group)  # what it exchanges itself is neither compared nor counted
        self._failed: Exception | None = None
        self._in_batch = False
        handle.exchange.before = self._compare

    @contextmanager
    def batch(self) -> Iterator[None]:
        """The context of one batch, from prompts to decoded images.

        Raises:
            BatchFailed: the batch failed on any rank of the group; ``OutOfMemory`` if any rank ran out of memory.
            PeerLost: a rank of the group did not answer.
        """
        self._failed, self._in_batch, left = None, True, False
        try:
            yield
        except (PeerLost, UsageError):
            raise
        except _LeaveBatch:
            left = True
        except Exception as error:  # attributed to the rows until they have failed one by one
            self._failed = error
        finally:
            self._in_batch = False
        if not left and not self._any_failed():
            return
        failure = self._gather_failure()
        self._failed = None  # its traceback holds the tensors of all frames
        self._handle.abandon_run()
        raise failure

    def _compare(self) -> None:
        """Before a collective.

        Raises:
            _LeaveBatch: another rank has failed.
        """
        if self._in_batch and self._any_failed():
            raise _LeaveBatch

    def _any_failed(self) -> bool:
        return bool(self._own.all_reduce_max(int(self._failed is not None), self._own.group.timeout_s))

    def _gather_failure(self) -> BatchFailed:
        """The error of the first rank that failed, in one line."""
        text = b"" if self._failed is None else error_line(self._failed).encode()[:REASON_BYTES]
        mine = bytes([_is_out_of_memory(self._failed)]) + text.ljust(REASON_BYTES, b"\0")
        gathered = self._own.all_gather(torch.tensor(list(mine), dtype=torch.uint8, device=self._device))
        payloads = [bytes(theirs.tolist()) for theirs in gathered]
        reasons = [payload[1:].rstrip(b"\0").decode(errors="ignore") for payload in payloads]
        kind = OutOfMemory if any(payload[0] for payload in payloads) else BatchFailed
        return next(kind(reason) for reason in reasons if reason)


def _is_out_of_memory(error: Exception | None) -> bool:
    """Whether an error says that device or main memory is used up."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)  # an error's argument need not be text
    return isinstance(error, RuntimeError) and ("out of memory" in text or should_reduce_batch_size(RuntimeError(text)))


def error_line(error: BaseException) -> str:
    """An error as the corpus records it for a row: one line, shortened, without secrets, and equal each time it happens."""
    lines = str(error).strip().splitlines()
    return shortened(": ".join([type(error).__name__, *lines[:1]]), REASON_BYTES)
