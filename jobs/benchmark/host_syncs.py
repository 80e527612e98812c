"""Counts the moments at which Python waits for the device."""

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_SYNCHRONIZING = {"_local_scalar_dense", "equal", "nonzero", "masked_select"}
_INDEXING = {"index", "index_put", "index_put_"}
_COPYING = {"_to_copy", "copy_"}
_TO_HOST = (Tensor.tolist, Tensor.numpy)


class HostSyncs(AbstractContextManager["HostSyncs"]):
    """Counts, while it is entered, the operations that read a tensor's values on the host.

    These are reads of scalars (``item``, ``bool``, an index), comparisons, searches for indices, masks, conversions to lists or
    arrays, and copies from a device to the host. On CPU nothing waits, but operations that would wait on a GPU are counted, as
    are reads of tensors that a GPU run keeps on the host.

    Attributes:
        counts: number of host syncs by name of the operation.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._stack = ExitStack()

    @property
    def total(self) -> int:
        """Number of all of them."""
        return self.counts.total()

    @contextmanager
    def apart(self, scheduler: Any) -> Iterator[None]:
        """Counts what a Diffusers scheduler's step reads by itself, under the name ``scheduler``."""
        kind = type(scheduler)

        @wraps(kind.step)
        def counted(*args: Any, **kwargs: Any) -> Any:
            before = self.counts.copy()
            result = kind.step(*args, **kwargs)
            own = self.total - before.total()
            self.counts.clear()
            self.counts.update(before, scheduler=own)
            return result

        scheduler.__class__ = type(kind.__name__, (kind,), {"step": counted})  # survives the copies that read the scheduler
        try:
            yield
        finally:
            scheduler.__class__ = kind

    def __enter__(self) -> "HostSyncs":
        self._stack.enter_context(_HostCopies(self.counts))
        self._stack.enter_context(_Reads(self.counts))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()


class _Reads(TorchDispatchMode):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        masked = name in _INDEXING and any(part is not None and part.dtype == torch.bool for part in args[1])
        if name in _SYNCHRONIZING or masked or (name in _COPYING and _reaches_host(name, args, result)):
            self.counts[name] += 1
        return result


class _HostCopies(TorchFunctionMode):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func in _TO_HOST and isinstance(args[0], Tensor) and args[0].device.type == "cpu":  # a device's are copied: counted
            self.counts[func.__name__] += 1
        return func(*args, **(kwargs or {}))


def _reaches_host(name: str, args: tuple[Any, ...], result: Tensor) -> bool:
    source = args[1] if name == "copy_" else args[0]
    return isinstance(source, Tensor) and source.device != torch.device("cpu") and result.device.type == "cpu"
