"""S3 with retries: a request is sent again, with growing random pauses, until it succeeds or its retry budget is spent."""

import asyncio
import errno
import random
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from aiohttp import ClientError
from botocore.exceptions import BotoCoreError, ConnectionError, HTTPClientError
from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem
from s3fs.core import S3File

from hybridiff.errors import StorageError

RETRY_BUDGET_S = 90.0
FIRST_CONTACT_S = 5.0  # budget for a server that has not answered yet: it may be a wrong address
PARTS_AT_ONCE = 4  # of an upload that are on their way
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 10.0
_TRANSIENT = (ConnectionError, HTTPClientError, ClientError, TimeoutError, OSError)
_ANSWERS = (FileNotFoundError, FileExistsError)
_OWN = (*_ANSWERS, PermissionError)  # what the server means, however often it is asked
_MEANT = (errno.EINVAL, errno.EPERM, errno.ENAMETOOLONG, errno.EMSGSIZE, errno.ENOSYS)


class RetryingS3(S3FileSystem):
    """Each request of s3fs is retried for ``retry_budget_s`` seconds; for ``FIRST_CONTACT_S`` until there was any answer.

    An upload is sent in parts, and each is a request: what was sent stays sent. The last attempt starts within the budget; where
    the server is silent it ends after ``retries`` times ``connect_timeout`` and ``read_timeout``. So botocore does not retry by
    itself, and s3fs seldom: their attempts multiply. What is raised in the end is a StorageError that names the object.
    """

    protocol = ("s3", "s3a")
    retry_budget_s = RETRY_BUDGET_S
    answered = False
    retries = 3  # of s3fs, which also reads an answer again that broke off; by default 5, and botocore's 5 for each of them

    def _prepare_config_kwargs(self) -> dict[str, Any]:
        given: dict[str, Any] = super()._prepare_config_kwargs()
        return {"retries": {"total_max_attempts": 1}, **given}

    async def _call_s3(self, method: str, *options: Any, **given: Any) -> Any:
        started, pause_s = time.monotonic(), FIRST_PAUSE_S
        while True:
            try:
                answer = await super()._call_s3(method, *options, **given)
                self.answered = True
                return answer
            except Exception as error:
                self.answered |= isinstance(error, _ANSWERS)
                wait_s = random.uniform(pause_s / 2, pause_s)
                if not is_transient(error):
                    raise
                if time.monotonic() + wait_s > started + self._budget_s():
                    raise storage_error(error, given) from error.__cause__
            await asyncio.sleep(wait_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    call_s3 = sync_wrapper(_call_s3)  # s3fs's own would pass the above by

    def _budget_s(self) -> float:
        return self.retry_budget_s if self.answered else min(self.retry_budget_s, FIRST_CONTACT_S)

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, autocommit: bool = True, **given: Any) -> Any:
        if mode not in ("wb", "xb") or autocommit or block_size is None or given.keys() - {"cache_options"}:
            return super()._open(path, mode, block_size, autocommit=autocommit, **given)
        options = self.s3_additional_kwargs.copy()
        acl = options.get("ACL", False) or options.get("acl", False)
        payer = self.requester_pays
        return Upload(self, path, mode, block_size, acl, s3_additional_kwargs=options, requester_pays=payer, autocommit=False)

    def abort_uploads(self, path: str) -> None:
        """Aborts unfinished uploads of exactly this key, which a killed process has left; of no other."""
        bucket, key, _ = self.split_path(path)
        found = self.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key).get("Uploads") or []
        for upload in found:
            if upload["Key"] == key:
                self.abort_mpu(bucket, key, upload["UploadId"])


class Upload(S3File):
    """An object that appears at ``commit``. Its parts are sent while more is written; less than a part is sent at ``commit``.

    s3fs itself waits for each part, and takes three requests for the smallest object.
    """

    def __init__(self, *arguments: Any, **given: Any) -> None:
        super().__init__(*arguments, **given)
        self._sent: list[Future[dict[str, Any]]] = []

    def _initiate_upload(self) -> None:
        if not self.forced:  # else it is being closed, with less than a part
            super()._initiate_upload()

    def _upload_chunk(self, final: bool = False) -> bool:
        if self.mpu is None:
            return False  # the buffer stays, for commit
        data = self.buffer.getvalue()
        size = len(data) if final else len(data) // self.blocksize * self.blocksize
        for start in range(0, size, self.blocksize):
            self._send(data[start : min(start + self.blocksize, size)])
        self.offset += size
        self.buffer.seek(0)
        self.buffer.truncate()
        self.buffer.write(data[size:])
        if final:
            self.parts = [self._part(number) for number in range(len(self._sent))]
        return False

    def _send(self, data: bytes) -> None:
        if len(self._sent) >= PARTS_AT_ONCE:
            self._part(len(self._sent) - PARTS_AT_ONCE)
        options = {"Bucket": self.bucket, "Key": self.key, "UploadId": self.mpu["UploadId"], "PartNumber": len(self._sent) + 1}
        request = self.fs._call_s3("upload_part", self.s3_additional_kwargs, self._request_payer_kw, Body=data, **options)
        self._sent.append(asyncio.run_coroutine_threadsafe(request, self.fs.loop))

    def _part(self, number: int) -> dict[str, Any]:
        """What S3 wants to hear of a part, once it has it."""
        answer = self._sent[number].result()
        return {"PartNumber": number + 1} | {name: answer[name] for name in ("ETag", "ChecksumSHA256") if name in answer}

    def discard(self) -> None:
        """Aborts the upload, once no part is on its way any more that could outlive it."""
        for request in self._sent:
            with suppress(Exception):
                request.result()
        super().discard()


def storage_error(error: Exception, request: Mapping[str, Any]) -> StorageError:
    """An error of the connection that names the object; of no kind that s3fs would retry."""
    where = "/".join(str(request[name]) for name in ("Bucket", "Key") if name in request)
    said = (
        str(error) if isinstance(error, OSError) and not isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"
    )
    return StorageError(f"s3://{where}: {said}" if where else said)


def is_transient(error: BaseException) -> bool:
    """Whether a request may succeed when it is sent again: the server was not reached, was busy, or broke down."""
    if isinstance(error, _OWN) or (isinstance(error, OSError) and error.errno in _MEANT):
        return False
    return isinstance(error, _TRANSIENT) or (isinstance(error, BotoCoreError) and "onnect" in str(error))
