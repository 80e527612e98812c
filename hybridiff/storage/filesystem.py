"""File systems of urls and paths, and what each can do."""

import os
import re

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

_URL = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*::)*[A-Za-z][A-Za-z0-9+.-]*://.*", re.DOTALL)
_RENAMING = frozenset({"file", "local", "memory", "hdfs", "arrow_hdfs", "sftp", "ssh"})
_CREATING = frozenset({"file", "local", "memory", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})  # memory: within one process
_RETRYING = frozenset({"gs", "gcs", "abfs", "abfss", "az"})
_CLIENTS_BUDGET_S = 90.0  # for which gcsfs and Azure's client retry a request at most, by default


def is_url(text: str) -> bool:
    """Whether a text is an fsspec url, such as ``s3://bucket/key`` or ``zip::s3://bucket/a.zip``; else it is a local path."""
    return _URL.fullmatch(text) is not None


def locate(text: str) -> tuple[AbstractFileSystem, str]:
    """The file system and path of a url or local path; S3 with retries.

    A local path is used as it is, with ``::``, ``?``, ``#``, ``%``, ``[`` or blanks in it, but for a leading ``~``.
    """
    if not is_url(text):
        return LocalFileSystem(), os.path.join(os.getcwd(), os.path.expanduser(text))
    fs, path = url_to_fs(text)
    if not is_s3(fs):
        return fs, path
    from hybridiff.storage.s3 import RetryingS3  # needs s3fs, which is an extra

    return RetryingS3(**fs.storage_options), path


def protocols(fs: AbstractFileSystem) -> frozenset[str]:
    """All names of a file system's protocol, such as ``file`` and ``local``."""
    return frozenset([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)


def is_local(fs: AbstractFileSystem) -> bool:
    """Whether it is this machine's own."""
    return bool(protocols(fs) & {"file", "local"})


def is_memory(fs: AbstractFileSystem) -> bool:
    """Whether it ends with this process."""
    return "memory" in protocols(fs)


def is_s3(fs: AbstractFileSystem) -> bool:
    """Whether it is S3."""
    return "s3" in protocols(fs)


def can_rename(fs: AbstractFileSystem) -> bool:
    """Whether files are written beside their place and renamed; else they are objects that appear when they are complete."""
    return bool(protocols(fs) & _RENAMING)


def creates_if_absent(fs: AbstractFileSystem) -> bool:
    """Whether a file can be created only if it is absent, so that of several processes one does."""
    return bool(protocols(fs) & _CREATING)


def retry_budget_s(fs: AbstractFileSystem) -> float:
    """Seconds for which a request is retried; 0 where it is not."""
    if is_s3(fs):
        return float(fs.retry_budget_s)
    return _CLIENTS_BUDGET_S if protocols(fs) & _RETRYING else 0.0


def expect_answers(fs: AbstractFileSystem) -> None:
    """Gives a file system its whole retry budget from the first request on: its storage has answered to another process."""
    if is_s3(fs):
        fs.answered = True
