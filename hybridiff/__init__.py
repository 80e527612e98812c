"""Hybridiff: image datasets from diffusion models, each image by one GPU or by several that work together.

``parallelize`` makes a Diffusers pipeline run on a group of ranks; ``generate`` makes a corpus, as ``hybridiff generate`` does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from hybridiff.cli.generate import generate as generate
    from hybridiff.errors import UsageError as UsageError
    from hybridiff.parallel import Handle as Handle
    from hybridiff.parallel import PeerLost as PeerLost
    from hybridiff.parallel import parallelize as parallelize
    from hybridiff.schedule import Adaptive as Adaptive
    from hybridiff.schedule import Async as Async
    from hybridiff.schedule import Full as Full
    from hybridiff.schedule import Paper as Paper
    from hybridiff.schedule import Refresh as Refresh
    from hybridiff.schedule import Schedule as Schedule
    from hybridiff.schedule import StepKind as StepKind
    from hybridiff.schedule import Trace as Trace

_MODULES = {  # imported, and with them torch where they need it, when a name is first used
    "hybridiff.cli.generate": ("generate",),
    "hybridiff.errors": ("UsageError",),
    "hybridiff.parallel": ("Handle", "PeerLost", "parallelize"),
    "hybridiff.schedule": ("Adaptive", "Async", "Full", "Paper", "Refresh", "Schedule", "StepKind", "Trace"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Imports a public name from its module."""
    if name not in _HOME:
        raise AttributeError(f"module 'hybridiff' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
