"""What killed processes left of publications that were never finished."""

import re
from contextlib import suppress

from fsspec import AbstractFileSystem

from hybridiff.storage.protocols import is_s3
from hybridiff.storage.staging import is_staged


def sweep_leftovers(fs: AbstractFileSystem, path: str) -> None:
    """Removes what publications of exactly this name left that were never finished: for when nobody else may be at it."""
    if is_s3(fs):
        from hybridiff.storage.s3 import PatientS3

        if isinstance(fs, PatientS3):
            with suppress(PermissionError):  # not everybody may list uploads
                fs.abort_uploads(path)
    elif is_staged(fs):
        parent, _, name = path.rpartition("/")
        _sweep(fs, parent, name)


def _sweep(fs: AbstractFileSystem, parent: str, name: str) -> None:
    leftover = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]+\.tmp")
    for path in fs.ls(parent or "/", detail=False):
        if leftover.fullmatch(path.rpartition("/")[2]):
            with suppress(FileNotFoundError):
                fs.rm_file(path)
