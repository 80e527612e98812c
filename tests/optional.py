"""Packages that some tests need: without them they are skipped, but never in CI, whose environment has all that is tested."""

import importlib
import os
from typing import Any

import pytest


def needs(module: str, extra: str) -> Any:
    """Imports a module, or skips the test (or, called outside of tests, its file) where it is not installed.

    Args:
        module: name of the module.
        extra: the extra of hybridiff that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"needs {module}: pip install 'hybridiff[{extra}]'", allow_module_level=True)
