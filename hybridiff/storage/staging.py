"""Files that are written beside their final place and renamed, where the file system can."""

import errno
import os

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from hybridiff.storage.protocols import protocols

_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EACCES)  # of FUSE and some network file systems
_RENAMING = frozenset({"file", "local", "memory", "hdfs", "arrow_hdfs", "sftp", "ssh"})


def is_staged(fs: AbstractFileSystem) -> bool:
    """Whether files are written beside their place and renamed."""
    return bool(protocols(fs) & _RENAMING)


def rename(fs: AbstractFileSystem, source: str, target: str, exclusive: bool) -> None:
    """Gives a file its final name.

    Raises:
        FileExistsError: If ``exclusive`` and the name is taken.
    """
    if isinstance(fs, LocalFileSystem):
        if exclusive:
            _move_if_absent(source, target)
        else:
            os.replace(source, target)
        return
    if exclusive and fs.exists(target):
        raise FileExistsError(target)
    if isinstance(fs, MemoryFileSystem):  # its mv takes brackets in a name for a pattern
        fs.cp_file(source, target)
        fs.rm_file(source)
    else:
        fs.mv(source, target)


def _move_if_absent(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    else:
        os.unlink(source)
        return
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))  # the name is taken; for a moment the file is empty
    try:
        os.replace(source, target)
    except BaseException:
        os.unlink(target)
        raise
