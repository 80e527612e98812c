"""S3 with patience: requests are tried again, with growing random pauses, until they succeed or the patience ends."""

import asyncio
import errno
import random
import time
from typing import Any

from aiohttp import ClientError
from botocore.exceptions import BotoCoreError, ConnectionError, HTTPClientError
from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem

PATIENCE_S = 90.0
FIRST_CONTACT_S = 5.0  # of patience before a run, with what may just be a wrong address
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 10.0
_PASSING = (ConnectionError, HTTPClientError, ClientError, TimeoutError, OSError)
_OWN = (FileNotFoundError, FileExistsError, PermissionError)  # what the server means, however often it is asked
_MEANT = (errno.EINVAL, errno.EPERM, errno.ENAMETOOLONG, errno.EMSGSIZE)


class PatientS3(S3FileSystem):
    """Every request of s3fs, with its own few attempts, is begun again for ``patience_s`` seconds; ``start_run`` sets them.

    An upload is sent in parts, and each is a request: what was sent stays sent.
    """

    protocol = ("s3", "s3a")
    patience_s = FIRST_CONTACT_S

    async def _call_s3(self, method: str, *options: Any, **given: Any) -> Any:
        started, pause_s = time.monotonic(), FIRST_PAUSE_S
        while True:
            try:
                return await super()._call_s3(method, *options, **given)
            except Exception as error:
                wait_s = random.uniform(pause_s / 2, pause_s)
                if not passing(error) or time.monotonic() + wait_s > started + self.patience_s:
                    raise
            await asyncio.sleep(wait_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    call_s3 = sync_wrapper(_call_s3)  # s3fs's own would pass the above by

    def abort_uploads(self, path: str) -> None:
        """Aborts unfinished uploads of exactly this key, which a killed process has left; of no other."""
        bucket, key, _ = self.split_path(path)
        found = self.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key).get("Uploads") or []
        for upload in found:
            if upload["Key"] == key:
                self.abort_mpu(bucket, key, upload["UploadId"])


def passing(error: BaseException) -> bool:
    """Whether a request may succeed when it is sent again: the server was not reached, was busy, or broke down."""
    if isinstance(error, _OWN) or (isinstance(error, OSError) and error.errno in _MEANT):
        return False
    return isinstance(error, _PASSING) or (isinstance(error, BotoCoreError) and "onnect" in str(error))
