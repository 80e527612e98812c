"""Keeps the ranks of a group in step where one of them fails in the pipeline, so that none waits for it in vain.

Before the denoiser first runs, each time that it has run, and at the end, the ranks ask one another whether anything failed,
before they exchange what it has computed. The question goes from host to host, while the device still works on the step.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from hybridiff.errors import UsageError
from hybridiff.parallel import PeerLost
from hybridiff.runner.agreement import Agreement
from hybridiff.runner.failed_rows import DrawFailed


class _Left(Exception):
    """The ranks have agreed to leave the batch: one of them failed."""


class Guard:
    """Watches the denoiser of one rank.

    Args:
        denoiser: Not parallelized yet; its forward is wrapped until ``remove``.
        agreement: Of the group.
        alone: Whether the group has one rank, with nobody to keep in step with.
    """

    def __init__(self, denoiser: nn.Module, agreement: Agreement, alone: bool) -> None:
        self._denoiser = denoiser
        self._agreement = agreement
        self._entered = False
        self._failed: Exception | None = None
        self._hook: RemovableHandle | None = None
        if not alone:
            forward = denoiser.forward
            denoiser.forward = lambda *args, **kwargs: self._call(forward, args, kwargs)
            self._hook = denoiser.register_forward_pre_hook(self._enter)

    def remove(self) -> None:
        """Gives the denoiser its own forward back; parallelized no more by then."""
        self._denoiser.__dict__.pop("forward", None)
        if self._hook is not None:
            self._hook.remove()

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """For one batch, from prompts to pictures of this rank's share.

        Raises:
            DrawFailed: it failed on any rank of the group; on all ranks alike.
        """
        self._entered, self._failed = False, None
        left = False
        try:
            yield
        except (PeerLost, UsageError):
            raise
        except _Left:
            left = True
        except Exception as raised:  # whatever a pipeline raises is the row's fault until it has failed alone
            self._failed = raised
        left = left or self._agreement.failed(self._failed is not None)
        failure = self._agreement.failure(self._failed) if left else None
        self._failed = None  # it holds the tensors of all frames that it went through
        if failure is not None:
            raise DrawFailed(failure)

    def _enter(self, *_: Any) -> None:
        """Before anything notes that a run has begun: a rank that fails earlier never begins it."""
        if not self._entered:
            self._entered = True
            if self._agreement.failed(False):
                raise _Left

    def _call(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = None
        try:
            output = forward(*args, **kwargs)
        except (PeerLost, UsageError):
            raise
        except Exception as error:
            self._failed = error
        if self._agreement.failed(self._failed is not None):
            raise _Left
        return output
