"""Damage to the files of a corpus."""

import json
import random
from collections.abc import Callable

from hybridiff.corpus import Corpus
from hybridiff.corpus.layout import marker_name, metadata_name, tar_name
from hybridiff.storage.publish import publish_bytes

Fault = Callable[[bytes], bytes | None]


FAULTS: dict[str, Fault] = {
    "flipped": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :],
    "truncated": lambda data: data[: len(data) // 2],
    "emptied": lambda data: b"",
    "lengthened": lambda data: data + b"\0" * 512 + b"x",
    "garbage": lambda data: random.Random(0).randbytes(len(data)),
    "deleted": lambda data: None,
}


def put(corpus: Corpus, name: str, data: bytes | None) -> None:
    if data is None:
        corpus.fs.rm_file(corpus.path(name))
    else:
        corpus.publish(name, data)


def seal(corpus: Corpus, index: int) -> None:
    """Makes a shard's marker fit its files, whatever they hold."""
    marker = corpus.read_marker(index)
    for name in marker["files"]:
        done = publish_bytes(corpus.fs, corpus.path(name), corpus.read(name))
        marker["files"][name] = {"bytes": done.bytes, "sha256": done.sha256}
    corpus.publish(marker_name(index), json.dumps(marker).encode())


def repeat_keys(corpus: Corpus) -> None:
    """Gives shard 1 what shard 0 holds."""
    marker = corpus.read_marker(0)
    for name in (tar_name, metadata_name):
        put(corpus, name(1), corpus.read(name(0)))
    put(corpus, marker_name(1), json.dumps({**marker, "shard": 1, "files": corpus.read_marker(1)["files"]}).encode())
    seal(corpus, 1)
