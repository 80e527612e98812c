"""Errors by kind: a mistake of the user's, trouble of the storage, or a service that does not answer."""

import errno
import os

import pytest

from hybridiff.errors import ServiceError, StorageError, UsageError, access_error, amount

MISTAKES = [
    *(OSError(number, os.strerror(number)) for number in (errno.ENOENT, errno.EACCES, errno.EROFS, errno.ENAMETOOLONG)),
    *(OSError(number, os.strerror(number)) for number in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP)),
    ValueError("Protocol not known: nosuch"),
    ImportError("Install s3fs to access S3"),
    UsageError("x is 1; allowed: 2"),
]
TROUBLE = [
    *(OSError(number, os.strerror(number)) for number in (errno.EIO, errno.ENOSPC, errno.ESTALE, errno.EDQUOT)),
    ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
    TimeoutError("no answer"),
    StorageError("s3://bucket/a: Could not connect"),
    RuntimeError("Unable to locate credentials"),
]


@pytest.mark.parametrize(("kind", "errors"), [(UsageError, MISTAKES), (StorageError, TROUBLE)])
def test_what_a_file_system_raises_is_a_mistake_or_trouble(kind: type[Exception], errors: list[Exception]) -> None:
    for error in errors:
        found = access_error("the line", error)
        assert type(found) is kind and str(found) == "the line", error


@pytest.mark.parametrize(("status", "kind"), [(403, UsageError), (429, StorageError), (503, StorageError)])
def test_an_answer_of_http_counts_by_its_status(status: int, kind: type[Exception]) -> None:
    answer = RuntimeError("from the server")
    answer.status = status  # type: ignore[attr-defined]
    assert type(access_error("the line", answer)) is kind


def test_trouble_of_the_storage_is_an_error_of_the_system() -> None:
    """As commands end with exit code 1 for any of these."""
    assert issubclass(StorageError, ServiceError) and issubclass(ServiceError, OSError)


def test_one_of_a_thing_is_singular() -> None:
    found = [amount(number, noun) for noun in ("image", "process", "failed row") for number in (0, 1, 2)]
    assert found[:3] == ["0 images", "1 image", "2 images"]
    assert found[3:6] == ["0 processes", "1 process", "2 processes"] and found[7] == "1 failed row"
