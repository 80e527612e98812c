"""The samples of a shard, read from its tar."""

import tarfile
from collections.abc import Iterator
from itertools import groupby
from typing import IO


def read_samples(handle: IO[bytes]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Streams a shard's tar: each key with its files by extension, one sample in memory at a time."""
    with tarfile.open(fileobj=handle, mode="r|") as tar:
        for key, members in groupby(tar, key=lambda member: member.name.partition(".")[0]):
            yield key, {member.name.partition(".")[2]: _content(tar, member) for member in members}


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    if file is None:
        raise ValueError(f"{member.name!r} in the tar is not a file")
    return file.read()
