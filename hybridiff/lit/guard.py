"""Keeps the ranks of a group in step where one of them fails in the pipeline, so that none waits for it in vain.

A rank that fails before the first denoiser call tells so in place of the first exchange. One that fails in the denoiser answers
with NaN, which spreads through the exchange to all ranks, and all of them leave before the next step.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hybridiff.config import UsageError
from hybridiff.lit.agreement import Agreement, NotFinite
from hybridiff.lit.salvage import DrawFailed
from hybridiff.parallel import PeerLost


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
        self._alone = alone
        self._entered = False
        self._caught: Exception | None = None
        if not alone:
            forward = denoiser.forward
            denoiser.forward = lambda *args, **kwargs: self._call(forward, args, kwargs)
        self._hook = denoiser.register_forward_pre_hook(self._before, with_kwargs=True)

    def remove(self) -> None:
        """Gives the denoiser its own forward back; parallelized no more by then."""
        self._hook.remove()
        self._denoiser.__dict__.pop("forward", None)

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """For one batch, from prompts to pictures of this rank's share.

        Raises:
            DrawFailed: it failed on any rank of the group; on all ranks alike.
        """
        self._entered, self._caught = False, None
        error: Exception | None = None
        try:
            yield
        except (PeerLost, UsageError, DrawFailed):
            raise
        except Exception as raised:  # whatever a pipeline raises is the row's fault until it has failed alone
            error = raised
        self._meet(error)
        failure = self._agreement.failure(self._caught or error)
        error = self._caught = None  # they hold the tensors of all frames that they went through
        if failure is not None:
            raise DrawFailed(failure)

    def _meet(self, error: Exception | None) -> None:
        """The exchange before the first step: all ranks have come so far, or all leave."""
        if not self._entered:
            self._entered = True
            failure = self._agreement.failure(error)
            if failure is not None:
                raise DrawFailed(failure) from error

    def _before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._meet(None)
        if not self._alone and not bool(_latents(args, kwargs).isfinite().all()):
            raise NotFinite

    def _call(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return forward(*args, **kwargs)
        except (PeerLost, UsageError):
            raise
        except Exception as error:
            self._caught = self._caught or error
            return (torch.full_like(_latents(args, kwargs), float("nan")),)


def _latents(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    given = args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))
    assert isinstance(given, Tensor), "the denoiser is called without a model input"
    return given
