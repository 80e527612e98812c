"""Hybridiff: image datasets from diffusion models, each image made by a pair of GPUs.

The library's front door is ``parallelize``; the job is ``jobs/generate.py``.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Handle", "UsageError", "parallelize"]

from hybridiff.errors import UsageError

if TYPE_CHECKING:
    from hybridiff.parallel import Handle, parallelize


def __getattr__(name: str) -> Any:
    """Imports the engine, and with it torch, only when it is asked for."""
    if name in ("Handle", "parallelize"):
        from hybridiff import parallel

        return getattr(parallel, name)
    raise AttributeError(f"module 'hybridiff' has no attribute {name!r}")
