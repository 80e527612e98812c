"""Large tables that ranks, jobs and later runs share: one makes it under ``tables/``, by a lease, and the others wait for it."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from hybridiff.errors import StorageError, UsageError, access_error
from hybridiff.prompts.normalise import Request
from hybridiff.prompts.table import PromptTable, open_table, write_table
from hybridiff.secrets import one_line
from hybridiff.storage.filesystem import is_local
from hybridiff.storage.folder import Folder
from hybridiff.storage.lease import LeaseLost, Leases
from hybridiff.storage.lease_file import latest_generations

Role = Literal["lead", "follow", "alone"]
"""Whether a rank makes large tables for all (rank 0), waits for it, or keeps what it makes to itself and writes nothing."""

FORMAT = 4  # of normalised tables; another one is not read
LOOK_S = 0.2  # between two looks at whether the table is there
FIRST_LOOK_S = 60.0  # that a rank waits for the one that makes the table to begin


def identity(request: Request, shard_rows: int) -> str | None:
    """What names a request's rows as they are now: it changes whenever a file does; None where a file system has no versions."""
    versions = [source.version() for source in request.sources]
    if None in versions:
        return None
    reading = {name: value for name, value in vars(request.data).items() if name not in ("prompts", "batch_size", "lease_s")}
    options = [FORMAT, reading, request.images, request.slugs, shard_rows, request.negative_prompts]
    return hashlib.sha256(json.dumps([options, versions]).encode()).hexdigest()[:32]


class SharedTable:
    """A large table in a folder, under a name that identifies its sources.

    Args:
        folder: corpus that holds it
        name: identity of what is read
        request: what is read
        shard_rows: rows of a shard
    """

    def __init__(self, folder: Folder, name: str, request: Request, shard_rows: int) -> None:
        self._folder, self._request, self._shard_rows = folder, request, shard_rows
        self._name, self._lease = f"tables/{name}.parquet", f"table-{name}"
        self._made_here = False

    def load(self) -> PromptTable | None:
        """The table, if it was made before."""
        with _stored(self._folder, "read"):
            return open_table(self._opened, self._discard) if self._is_there() else None

    def make(self) -> PromptTable:
        """Makes the table, or waits for another job that does.

        Raises:
            UsageError: anything about the rows is not allowed, or the folder can't be written.
        """
        if not self._folder.creates_if_absent:
            self._write(lambda: None, sweep=False)
        else:
            leases = Leases(self._folder, "leases", self._request.data.lease_s)
            with _stored(self._folder, "written"), leases.heartbeat():
                while not self._is_there():
                    if leases.acquire(self._lease):
                        self._make_once(leases)
                    else:
                        leases.wait(self._lease, self._is_there, LOOK_S)
        table = self.load()
        return self.make() if table is None else table  # removed in this moment

    def wait(self) -> PromptTable | None:
        """The table that another rank makes; None once that has ended without one."""
        started, deadline = False, time.monotonic() + FIRST_LOOK_S
        while (table := self.load()) is None:
            if self._folder.creates_if_absent and self._lease in latest_generations(self._folder, "leases"):
                started = True
                Leases(self._folder, "leases", self._request.data.lease_s).wait(self._lease, self._is_there, LOOK_S)
            elif started or time.monotonic() > deadline:
                return self.load()
            time.sleep(LOOK_S)
        return table

    def _make_once(self, leases: Leases) -> None:
        if self._is_there():  # made by one that ended in this moment
            return
        with suppress(LeaseLost):  # another has taken over
            self._write(lambda: leases.require(self._lease), leases.took_over(self._lease))

    def _write(self, before_commit: Callable[[], None], sweep: bool) -> None:
        with _stored(self._folder, "written"), self._folder.publishing(self._name, sweep) as sink:
            write_table(self._request, sink, self._shard_rows)
            before_commit()
        self._made_here = True

    def _is_there(self) -> bool:
        return self._folder.modified(self._name) is not None  # exists() of many file systems takes any trouble for a no

    @contextmanager
    def _opened(self, metadata: pq.FileMetaData | None) -> Iterator[pq.ParquetFile]:
        fs, path = self._folder.fs, self._folder.path(self._name)
        with _stored(self._folder, "read"):
            if is_local(fs):
                with pq.ParquetFile(path, metadata=metadata) as file:
                    yield file
            else:
                with fs.open(path, "rb") as handle, pq.ParquetFile(handle, metadata=metadata, pre_buffer=True) as file:
                    yield file

    def _discard(self) -> None:
        """Removes the table, if this process has made it."""
        if self._made_here:
            with suppress(Exception):  # what stays is of use to a run with these tables
                self._folder.remove(self._name)


@contextmanager
def _stored(folder: Folder, what: str) -> Iterator[None]:
    """Names the folder in what its storage raises: a ``UsageError`` where it can't be written at all, else a ``StorageError``."""
    message = f"{folder.url}: the normalised prompt table can't be {what} there"
    try:
        yield
    except (StorageError, UsageError):
        raise
    except FileNotFoundError as error:
        raise StorageError(f"{message}: it was removed; the same command makes it again") from error
    except OSError as error:
        raise access_error(f"{message}: {one_line(error)}", error) from error
    except pa.ArrowException as error:
        raise StorageError(f"{message}: it is damaged, remove tables/ ({one_line(error)})") from error
