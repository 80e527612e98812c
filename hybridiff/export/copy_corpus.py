"""Publishing a corpus to another directory, at any fsspec url: what is there with the same content is not sent again."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.reader import CHUNK, CountedFile, damaged
from hybridiff.corpus.writable import LEFTOVER, check_writable
from hybridiff.errors import UsageError
from hybridiff.export.licence import Licence
from hybridiff.export.publication import DataFile, Publishable, ShardFiles, SmallFile
from hybridiff.storage.folder import SMALL_FILE, Folder, modified

_AT_ONCE = 4  # shards


@dataclass
class Sent:
    """What was published.

    Args:
        files: number of files sent.
        bytes: their bytes.
        skipped: number of files that were there already.
        commits: number of commits, where the target has such.
    """

    files: int = 0
    bytes: int = 0
    skipped: int = 0
    commits: int = 0

    def add(self, size: int | None) -> None:
        """Counts a file that was sent, or with None one that was there."""
        self.files += size is not None
        self.bytes += size or 0
        self.skipped += size is None


def publish_to_folder(found: Publishable, url: str, licence: Licence, report: Callable[[str], None] = lambda _: None) -> Sent:
    """Copies a corpus to a directory: each shard's files before its marker, the card last.

    Args:
        found: the corpus.
        url: a path or any fsspec url.
        licence: the licence of its model.
        report: called with a line for each shard that was sent.

    Raises:
        UsageError: the directory holds something else, is the corpus itself, or can't be written.
        StorageError: the storage failed, or a file is not what its marker says.
    """
    target, sent = Corpus(url, "URL"), Sent()
    _check_target(found, target)
    check_writable(target)
    for file in found.records():
        sent.add(_publish_small(target, file))
    shards = found.shards
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="publish") as threads:
        futures = [threads.submit(partial(_publish_shard, target, shard)) for shard in shards]
        try:
            for shard, future in zip(shards, futures, strict=True):
                sizes = future.result()
                for size in sizes:
                    sent.add(size)
                if any(size is not None for size in sizes):
                    report(f"{target.url}: {shard.marker.target} published")
        except BaseException:
            for future in futures:
                future.cancel()
            raise
    for file in found.descriptions(licence):
        sent.add(_publish_small(target, file))
    return sent


def _check_target(found: Publishable, target: Folder) -> None:
    if target.holds(found.folder) or found.folder.holds(target):
        raise UsageError(f"URL is {target.url}, which is the corpus itself, in it or above it; allowed: another directory")
    names = [name for name in target.names("") if not LEFTOVER.fullmatch(name)]
    if not names:
        return
    there = [(file, _read(target, file.target)) for file in found.records()]
    for file, content in there:
        if content not in (None, file.content):
            raise UsageError(f"URL is {target.url}, whose {file.target} is of another corpus; allowed: a new directory")
    if all(content is None for _, content in there):
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise UsageError(f"URL is {target.url}, which holds {shown}; allowed: a new directory, or one with a part of this corpus")


def _publish_small(target: Folder, file: SmallFile) -> int | None:
    """Publishes a small file and returns its size; None if it is there."""
    if _read(target, file.target, max(SMALL_FILE, len(file.content))) == file.content:
        return None
    target.publish(file.target, file.content)
    return len(file.content)


def _publish_shard(target: Folder, shard: ShardFiles) -> list[int | None]:
    """Publishes a shard; the sizes of what was sent, None for what was there."""
    marker = _read(target, shard.marker.target)
    if marker is not None and marker != shard.marker.content:
        target.remove(shard.marker.target)  # of files that are about to be replaced
        marker = None
    written = target.modified(shard.marker.target) if marker is not None else None
    sizes = [_publish_data(target, file, written) for file in shard.data]
    return [*sizes, _publish_small(target, shard.marker)]


def _publish_data(target: Folder, file: DataFile, marker_written: datetime | None) -> int | None:
    """Publishes a shard's file and returns its size; None if it is there.

    What is older than its marker is known by its size, as a marker follows on files that were compared with it. What is newer,
    or has no marker yet, is read.
    """
    size, written = _size_and_time(target, file.target)
    is_older = marker_written is not None and written <= marker_written
    if size == file.size and (is_older or _hash(target, file.target) == file.sha256):
        return None
    with target.publishing(file.target, sweep=False) as copy:
        send(file, copy.write)
    return file.size


def send(file: DataFile, write: Callable[[bytes], object]) -> None:
    """Reads a file from its corpus, and compares it with its marker at the end.

    Raises:
        ShardDamaged: it is missing, or not what its marker says.
    """
    try:
        with file.corpus.fs.open(file.corpus.path(file.name), "rb") as handle:
            counted = CountedFile(handle)
            while data := counted.read(CHUNK):
                write(data)
    except FileNotFoundError as error:
        raise damaged(file.corpus, file.name, error) from error
    if differs := counted.differs({"bytes": file.size, "sha256": file.sha256}):
        raise damaged(file.corpus, file.name, differs)


def _read(target: Folder, name: str, most: int = SMALL_FILE) -> bytes | None:
    try:
        return target.read(name, most)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _size_and_time(target: Folder, name: str) -> tuple[int | None, datetime]:
    """Bytes of a file, None if there is none, and when it was written."""
    try:
        target.fs.invalidate_cache(target.path(name).rpartition("/")[0])
        found = target.fs.info(target.path(name))
        return int(found["size"]), modified(found)
    except (FileNotFoundError, NotADirectoryError):
        return None, datetime.max.replace(tzinfo=UTC)


def _hash(target: Folder, name: str) -> str:
    with target.fs.open(target.path(name), "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
