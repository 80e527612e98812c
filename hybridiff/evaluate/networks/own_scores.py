"""Scores of own classes, by ``module:Class``.

An own class is made without arguments, once on each rank, and called with the images and the rows of a batch:

    class Brightness:
        def __call__(self, images, rows):
            return [image.mean() for image in images]

``images`` is a list of (height, width, 3) uint8 arrays and ``rows`` a list of dictionaries, the rows of the corpus by column. It
returns a number for each image, or a dictionary of names with such lists. The column is named like the class, in lower case with
underscores, or as its attribute ``name`` says.
"""

import hashlib
import importlib
import math
import re
import sys
import sysconfig
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from hybridiff.errors import UsageError
from hybridiff.evaluate.shard_images import Pixels
from hybridiff.secrets import one_line

_COLUMN = re.compile(r"[A-Za-z_]\w{0,63}", re.ASCII)


def find_class(name: str) -> Any:
    """The class that ``module:Class`` names.

    Raises:
        UsageError: it can't be imported, or is no class whose objects can be called.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a module may raise anything when it is imported
        raise UsageError(f"--scores has {name!r}, which can't be imported ({one_line(error)}); allowed: module:Class") from error
    if not isinstance(found, type) or not callable(getattr(found, "__call__", None)):  # noqa: B004
        raise UsageError(
            f"--scores has {name!r}, a {type(found).__name__}; allowed: a class whose objects map images and rows to numbers"
        )
    return found


def source_digest(name: str) -> str:
    """SHA-256 of the code behind ``module:Class``: of the files of its package, and of what is loaded from the same directory.

    Installed packages that it imports are identified by their versions; files that it opens are not identified.
    """
    top = name.partition(":")[0].partition(".")[0]
    files = {module: Path(file) for module, one in sys.modules.copy().items() if (file := getattr(one, "__file__", None))}
    beside = [files[top].parent] if top in files else []
    installed = [Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib", "stdlib")]
    found = hashlib.sha256()
    for module, file in sorted(files.items()):
        package = module.partition(".")[0]
        is_beside = _lies_in(file, beside) and not _lies_in(file, installed) and package != "hybridiff"
        if (package == top or is_beside) and file.is_file():
            found.update(f"{module} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()


def _lies_in(file: Path, directories: Sequence[Path]) -> bool:
    return any(directory in file.parents for directory in directories)


class OwnScore:
    """A score of an own class.

    Args:
        kind: the class.
        taken: names of columns that it may not use.

    Raises:
        UsageError: an object of it can't be made.
    """

    def __init__(self, kind: Any, taken: Collection[str] = ()) -> None:
        self._kind, self._taken = kind, frozenset(taken)
        try:
            self._object = kind()
        except Exception as error:  # the class may raise anything
            raise UsageError(
                f"--scores: {kind.__name__} can't be made ({one_line(error)}); allowed: a class without arguments"
            ) from error
        self._name = str(getattr(self._object, "name", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind.__name__).lower()))

    def __call__(self, images: Sequence[Pixels], rows: Sequence[dict[str, Any]], vectors: Any) -> dict[str, Sequence[Any]]:
        """Its values by column.

        Raises:
            UsageError: they are not a number for each image, or computing them fails.
        """
        try:
            found = self._object(list(images), list(rows))
        except Exception as error:  # the class may raise anything
            raise UsageError(f"--scores: {self._kind.__name__} failed on images ({one_line(error)})") from error
        columns = found if isinstance(found, Mapping) else {self._name: found}
        return {self._checked(name): self._numbers(name, values, len(images)) for name, values in columns.items()}

    def _checked(self, name: str) -> str:
        if not isinstance(name, str) or not _COLUMN.fullmatch(name) or name in self._taken:
            raise UsageError(f"--scores: {self._kind.__name__} names a column {name!r}; allowed: a name that no other column has")
        return name

    def _numbers(self, name: str, values: Any, count: int) -> list[float | None]:
        """The values; None where one is None or NaN, which means that there is none."""
        try:
            floats = [math.nan if value is None else float(value) for value in values]
        except Exception as error:  # of values that are no numbers
            raise UsageError(f"--scores: {self._kind.__name__} gives {name} that are no numbers ({one_line(error)})") from error
        if len(floats) != count:
            raise UsageError(
                f"--scores: {self._kind.__name__} gives {len(floats)} {name} for {count} images; allowed: one for each"
            )
        return [None if math.isnan(value) else value for value in floats]
