"""Does one shard hold what its marker, its rows and its tar promise each other?"""

import hashlib
import io
import json
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from hybridiff.corpus.columns import IMAGE
from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.counted import CHUNK, Counted, Watched
from hybridiff.corpus.names import marker_counts, marker_name, metadata_name, tar_name
from hybridiff.corpus.samples import read_samples
from hybridiff.secrets import one_line

_BATCH = 256  # rows
_EMBEDDED = 4  # rows with images in them
_KEYS = 65_536  # rows of keys alone
_FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}
_COMPARED = ("key", "prompt", "negative_prompt", "seed", "status", "file", "width", "height", "sha256")


@dataclass
class Finding:
    """What a check found in one shard.

    Attributes:
        index: Of the shard.
        problems: One line each.
        counts: ``rows``, ``ok`` and ``failed`` of its marker; None if that is unusable.
        keys: A hash of each row's key, if its rows are intact.
        unreadable: Whether storage failed to give something that it has: what it holds is then unknown.
        marker: The commit marker as it was read.
        fingerprint: Of the run that the marker names.
    """

    index: int
    problems: list[str] = field(default_factory=list)
    counts: dict[str, int] | None = None
    keys: "array[int]" = field(default_factory=lambda: array("Q"))
    unreadable: bool = False
    marker: bytes = b""
    fingerprint: str | None = None

    def problem(self, text: str) -> None:
        """Notes a problem."""
        self.problems.append(" ".join(text.split()))


class ShardCheck:
    """Checks one shard; never raises for what it finds there.

    Args:
        corpus: Where it is.
        index: Of the shard.
        sidecar: Whether its tar holds rows as JSON; None if that is not known.

    Attributes:
        found: So far.
    """

    def __init__(self, corpus: Corpus, index: int, sidecar: bool | None = True) -> None:
        self.corpus, self.index, self.sidecar = corpus, index, sidecar
        self.found = Finding(index)
        self.problem = self.found.problem
        self.tar, self.metadata = tar_name(index), metadata_name(index)

    def run(self) -> Finding:
        """Reads the marker and both files."""
        try:
            self.found.marker = self.corpus.read(marker_name(self.index))
        except Exception as error:  # storage clients raise types of their own
            self.problem(f"{marker_name(self.index)}: {one_line(error)}")
            self.found.unreadable = not isinstance(error, FileNotFoundError)
            return self.found
        try:
            marker = json.loads(self.found.marker)
            self.found.counts = marker_counts(marker, self.index)
        except Exception as error:  # readers raise anything; the shard is corrupt whatever it is
            self.problem(f"{marker_name(self.index)}: {one_line(error)}")
            return self.found
        self.found.fingerprint = marker["fingerprint"]
        rows_intact = self._hashed(self.metadata, marker["files"][self.metadata], None)
        self._hashed(self.tar, marker["files"][self.tar], self._check_samples if rows_intact else None)
        return self.found

    def _hashed(self, name: str, expected: dict[str, Any], check: Callable[[Counted], None] | None) -> bool:
        """Reads a file once, from start to end, for its size and checksum and for ``check``, if given."""
        before = len(self.found.problems)
        try:
            with self.corpus.fs.open(self.corpus.path(name), "rb") as handle:
                counted = Counted(handle)
                if check is not None:
                    self._guarded(name, check, counted)
                counted.drain()
        except Exception as error:  # of the storage
            missing = isinstance(error, FileNotFoundError)
            self.problem(f"{name}: {'missing' if missing else one_line(error)}")
            self.found.unreadable |= not missing
            return False
        if differs := counted.differs(expected):
            self.problem(f"{name}: {differs}")
        return len(self.found.problems) == before

    def _guarded(self, name: str, check: Callable[[Counted], None], handle: Counted) -> None:
        try:
            check(handle)
        except Exception as error:  # of readers, or of the storage
            self.problem(f"{name}: {one_line(error)}")
            self.found.unreadable |= handle.refused

    def _check_samples(self, handle: Counted) -> None:
        """Compares the tar, sample by sample, with the rows."""
        samples = read_samples(handle)  # type: ignore[arg-type]
        assert self.found.counts is not None
        seen = {"rows": 0, "ok": 0, "failed": 0}
        for row in self._rows():
            key = row["key"]
            self.found.keys.append(key_hash(key))
            seen["rows"] += 1
            seen["ok" if row["status"] == "ok" else "failed"] += 1
            if IMAGE.name in row and _image_hash(row[IMAGE.name]) != row["sha256"]:
                self.problem(f"{self.metadata}: {key}: the SHA-256 of the image in it is not its row's")
            if row["status"] == "ok":
                found, files = next(samples, (None, {}))
                if found != key:
                    self.problem(f"{self.tar}: {'ends' if found is None else f'holds {found!r}'} where {key!r} belongs")
                    return
                for text in _sample_problems(row, files, self.sidecar):
                    self.problem(f"{self.tar}: {key}: {text}")
        for found, _ in samples:
            self.problem(f"{self.tar}: holds {found!r}, which is no row's")
        for name, number in seen.items():
            if self.found.counts[name] != number:
                self.problem(f"{self.metadata}: {number} {name}, its marker says {self.found.counts[name]}")

    def _rows(self) -> Iterator[dict[str, Any]]:
        """Reads the table a second time, after it was found to be as its marker says."""
        try:
            opened = self.corpus.fs.open(self.corpus.path(self.metadata), "rb")
        except Exception:
            self.found.unreadable = True
            raise
        with opened:
            table = Watched(opened)
            try:
                yield from _rows_of(table)
            finally:
                self.found.unreadable |= table.refused


def _rows_of(table: Watched) -> Iterator[dict[str, Any]]:
    file = pq.ParquetFile(table, buffer_size=CHUNK)
    embedded = [IMAGE.name] if IMAGE.name in file.schema_arrow.names else []
    for batch in file.iter_batches(_EMBEDDED if embedded else _BATCH, columns=[*_COMPARED, *embedded]):
        yield from batch.to_pylist()


def _image_hash(image: dict[str, Any] | None) -> str | None:
    return None if image is None else hashlib.sha256(image["bytes"]).hexdigest()


def _sample_problems(row: dict[str, Any], files: dict[str, bytes], sidecar: bool | None) -> Iterator[str]:
    """What is wrong with one sample: its text, its row, its image."""
    ending = str(row["file"]).rpartition(".")[2]
    sidecar = "json" in files if sidecar is None else sidecar
    expected = {ending, "txt"} | ({"json"} if sidecar else set())
    if files.keys() != expected:
        yield f"holds {sorted(files)}, not {sorted(expected)}"
        return
    if files["txt"] != row["prompt"].encode():
        yield "its txt is not its prompt"
    copy = json.loads(files["json"]) if sidecar else row
    differing = [name for name in _COMPARED if copy.get(name) != row[name]]
    if differing:
        yield f"its json differs from its row in {', '.join(differing)}"
    if hashlib.sha256(files[ending]).hexdigest() != row["sha256"]:
        yield "the image's SHA-256 is not its row's"
    try:
        with Image.open(io.BytesIO(files[ending])) as image:
            if image.format != _FORMATS.get(ending) or image.size != (row["width"], row["height"]):
                yield f"the image is {image.format} of {image.size}, its row says {ending} of {(row['width'], row['height'])}"
            image.verify()
    except Exception as error:  # Pillow's readers raise many types on damaged data
        yield f"the image can't be read ({one_line(error)})"


def key_hash(key: str | None) -> int:
    """64 bits that differ for different keys, but for one pair in 2**64."""
    return int.from_bytes(hashlib.blake2b(str(key).encode(), digest_size=8).digest(), "little")


def read_keys(corpus: Corpus, index: int) -> Iterator[str]:
    """The keys of a shard's rows."""
    with corpus.fs.open(corpus.path(metadata_name(index)), "rb") as handle:
        for batch in pq.ParquetFile(handle).iter_batches(_KEYS, columns=["key"]):
            yield from map(str, batch.column(0).to_pylist())
