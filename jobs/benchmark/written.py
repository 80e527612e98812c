"""The files that a benchmark writes, tried before anything is measured."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from hybridiff.errors import UsageError
from jobs.benchmark.world import World


def check_writable(paths: Mapping[str, str | None], world: World) -> None:
    """Refuses files that cannot be written, on all ranks alike; every rank calls it, and the first one, which writes, tries.

    Args:
        paths: By the name of the option; None for none.

    Raises:
        UsageError: naming the option and the reason.
    """
    refusals = [_refusal(name, Path(path)) for name, path in paths.items() if path is not None] if world.rank == 0 else []
    for refusal in world.gather(refusals)[0]:
        if refusal is not None:
            raise UsageError(refusal)


def _refusal(name: str, path: Path) -> str | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path.open("ab").close()
        else:
            with tempfile.TemporaryFile(dir=path.parent):
                pass
    except OSError as error:
        return f"{name} is {str(path)!r}; allowed: a file that can be written ({error.strerror or error})"
    return None
