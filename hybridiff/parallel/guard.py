"""Failure handling in a group: all ranks leave a batch together where one of them fails, so that none waits in a collective.

The ranks compare a failure flag before the first denoiser call of a batch, after each computed call and before its exchange, and
at the end of the batch. The flag travels between hosts while the device still works on the step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from diffusers.hooks import HookRegistry, ModelHook
from torch import nn

from hybridiff.errors import UsageError
from hybridiff.parallel.exchange import Exchange, PeerLost
from hybridiff.parallel.hooks import ForwardHook, remove_hook
from hybridiff.secrets import shortened

ENTRY_HOOK_NAME = "hybridiff.guard.entry"
CALL_HOOK_NAME = "hybridiff.guard.call"
REASON_BYTES = 256


class BatchFailed(Exception):
    """A batch failed on at least one rank of the group; raised on all of its ranks with the same reason, in one line."""


class OutOfMemory(BatchFailed):
    """A batch was too large for the memory of at least one rank of the group; raised on all of its ranks."""


class _LeaveBatch(Exception):
    """Another rank has failed: raised through the pipeline to leave the batch."""


class FailureGuard:
    """Watches one rank's denoiser by two hooks: around its own forward, and before all other hooks.

    Install it in two steps, as the pipeline's parallel hook goes between the two: the constructor before ``parallelize``, and
    ``install_entry`` after it. In a group of one rank there is nothing to compare, and no hook is installed.

    Args:
        denoiser: network of the pipeline.
        exchange: collectives of the group.
        device: device of the group's tensor collectives.
    """

    def __init__(self, denoiser: nn.Module, exchange: Exchange, device: torch.device) -> None:
        self._denoiser = denoiser
        self._exchange = exchange
        self._device = device
        self._entered = False
        self._failed: Exception | None = None
        self._alone = exchange.group.size == 1
        self._install(CallHook(self), CALL_HOOK_NAME)

    def install_entry(self) -> None:
        """Installs the hook that runs before all others."""
        self._install(EntryHook(self), ENTRY_HOOK_NAME)

    def _install(self, hook: ModelHook, name: str) -> None:
        if not self._alone:
            HookRegistry.check_if_exists_or_initialize(self._denoiser).register_hook(hook, name)

    def remove_entry(self) -> None:
        """Removes the entry hook; to be called before the pipeline's parallel hook is removed."""
        remove_hook(self._denoiser, ENTRY_HOOK_NAME)

    def remove(self) -> None:
        """Removes the hook around the denoiser's forward; to be called last."""
        remove_hook(self._denoiser, CALL_HOOK_NAME)

    @contextmanager
    def batch(self) -> Iterator[None]:
        """The context of one batch, from prompts to decoded images.

        Raises:
            BatchFailed: the batch failed on any rank of the group; ``OutOfMemory`` if any rank ran out of memory.
            PeerLost: a rank of the group did not answer.
        """
        self._entered, self._failed = False, None
        left = False
        try:
            yield
        except (PeerLost, UsageError):
            raise
        except _LeaveBatch:
            left = True
        except Exception as error:  # attributed to the rows until they have failed one by one
            self._failed = error
        left = left or self._any_failed()
        failure = self._gather_failure() if left else None
        self._failed = None  # its traceback holds the tensors of all frames
        if failure is not None:
            raise failure

    def enter(self) -> None:
        """Before the first call of a batch: a batch that failed on another rank before it is not started.

        Raises:
            _LeaveBatch: another rank has failed.
        """
        if not self._entered:
            self._entered = True
            if self._any_failed():
                raise _LeaveBatch

    def call(self, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs the denoiser; then, before its prediction is exchanged, compares failure flags.

        Raises:
            _LeaveBatch: it failed on this rank or another.
        """
        output = None
        try:
            output = forward(*args, **kwargs)
        except (PeerLost, UsageError):
            raise
        except Exception as error:
            self._failed = error
        if self._any_failed():
            raise _LeaveBatch
        return output

    def _any_failed(self) -> bool:
        return bool(self._exchange.all_reduce_max(int(self._failed is not None), self._exchange.group.timeout_s))

    def _gather_failure(self) -> BatchFailed | None:
        """The error of the first rank that failed, in one line; None if none did."""
        text = b"" if self._failed is None else error_line(self._failed).encode()[:REASON_BYTES]
        mine = bytes([_is_out_of_memory(self._failed)]) + text.ljust(REASON_BYTES, b"\0")
        gathered = self._exchange.all_gather(torch.tensor(list(mine), dtype=torch.uint8, device=self._device))
        payloads = [bytes(theirs.tolist()) for theirs in gathered]
        reasons = [payload[1:].rstrip(b"\0").decode(errors="ignore") for payload in payloads]
        kind = OutOfMemory if any(payload[0] for payload in payloads) else BatchFailed
        return next((kind(reason) for reason in reasons if reason), None)


class EntryHook(ModelHook):
    """Runs before the denoiser's other hooks."""

    def __init__(self, guard: FailureGuard) -> None:
        super().__init__()
        self._guard = guard

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Checks the other ranks at the first call of a batch."""
        self._guard.enter()
        return args, kwargs


class CallHook(ForwardHook):
    """Runs around the denoiser's own forward, and so only in steps that compute something."""

    def __init__(self, guard: FailureGuard) -> None:
        super().__init__()
        self._guard = guard

    @torch.compiler.disable(recursive=False)
    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Replaces the denoiser's forward."""
        return self._guard.call(self.fn_ref.original_forward, args, kwargs)


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
