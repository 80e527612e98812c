"""What a model may bring: weights as safetensors, and no code."""

from pathlib import Path
from typing import Any

import diffusers

from hybridiff.errors import UsageError

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def check_safe(path: str, source: str, index: dict[str, Any]) -> None:
    """Refuses models with code of their own, and local ones with pickled weights where safetensors are missing.

    Args:
        path: As the user gives it.
        source: Local directory or hub id.
        index: Its model_index.json.

    Raises:
        UsageError: names the part.
    """
    if not isinstance(index["_class_name"], str):
        raise _refuse(path, f"a pipeline of diffusers, not code of its own ({index['_class_name']})")
    for name, value in index.items():
        if not isinstance(value, list) or value == [None, None]:
            continue
        library = value[0] if value else None
        if library not in ("diffusers", "transformers") and not hasattr(diffusers.pipelines, str(library)):
            raise _refuse(path, f"parts of diffusers and transformers, not code of its own ({name} is {value})")
        folder = Path(source, name)
        if folder.is_dir() and not any(folder.glob("*.safetensors")):
            pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
            if pickles:
                raise _refuse(path, f"weights as safetensors ({name} has only {', '.join(pickles[:3])})")


def _refuse(path: str, allowed: str) -> UsageError:
    return UsageError(f"model.path is {path!r}; allowed: {allowed}")
