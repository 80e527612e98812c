"""The check of one shard: do its marker, its rows and its tar agree? Made-up files are found in bounded time and memory."""

import hashlib
import io
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from hybridiff.columns import CAPTION, IMAGE, NULL_COLUMNS, SCHEMA
from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.layout import marker_counts, marker_name, metadata_name, tar_name
from hybridiff.corpus.reader import CHUNK, CountedFile, check_regular, read_samples
from hybridiff.secrets import one_line
from hybridiff.storage.folder import parse_json

_BATCH = 256  # rows read at once
_EMBEDDED = 4  # rows with images read at once
_KEYS = 65_536  # keys read at once
_FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}
_COMPARED = ("key", "prompt", "negative_prompt", "seed", "status", "file", "width", "height", "sha256")
_TEXTS = [name for name in _COMPARED if pa.types.is_string(SCHEMA.field(name).type)]
_LARGE = 256 << 20  # bytes of a file that is not read to its end once it is known to be corrupt
_LARGEST_JSON = 64 << 20  # bytes
_LARGEST_ROW_GROUP = 1 << 30  # bytes that the compared columns unfold to; four times as many with images
_DECODED = 64 << 20  # bytes of texts that are decoded at once
_MOST = 20  # problems in a shard, after which its check ends


class Hopeless(ValueError):
    """So much is wrong with a shard that the rest of it is not read."""


@dataclass
class Finding:
    """What a check found in one shard.

    Attributes:
        index: index of the shard.
        problems: one line each.
        counts: ``rows``, ``ok`` and ``failed`` of its marker; None if that is unusable.
        keys: a hash of each row's key, if its rows are intact.
        unreadable: whether storage failed to give something that it has: the content is then unknown.
        marker: the commit marker as it was read.
        fingerprint: fingerprint of the run that the marker names.
    """

    index: int
    problems: list[str] = field(default_factory=list)
    counts: dict[str, int] | None = None
    keys: "array[int]" = field(default_factory=lambda: array("Q"))
    unreadable: bool = False
    marker: bytes = b""
    fingerprint: str | None = None

    def problem(self, text: str) -> None:
        """Adds a problem."""
        self.problems.append(" ".join(text.split()))


class ShardCheck:
    """Checks one shard; never raises for what it finds there.

    Args:
        corpus: the corpus.
        index: index of the shard.
        sidecar: whether its tar holds rows as JSON; None if that is not known.
        text: the column that the texts beside the images are of; None if that is not known, and is the prompt or a caption.

    Attributes:
        found: what was found so far.
    """

    def __init__(self, corpus: Corpus, index: int, sidecar: bool | None = True, text: str | None = "prompt") -> None:
        self.corpus, self.index, self.sidecar, self.text = corpus, index, sidecar, text
        self.found = Finding(index)
        self.problem = self.found.problem
        self.tar, self.metadata = tar_name(index), metadata_name(index)

    def run(self) -> Finding:
        """Reads the marker and both files."""
        name = marker_name(self.index)
        if not self._regular(name, None):
            return self.found
        try:
            self.found.marker = self.corpus.read(name)
        except Exception as error:  # storage clients raise types of their own
            self.problem(f"{name}: {one_line(error)}")
            self.found.unreadable = not isinstance(error, FileNotFoundError)
            return self.found
        try:
            marker = parse_json(self.found.marker)
            self.found.counts = marker_counts(marker, self.index)
        except Exception as error:  # readers raise anything; the shard is corrupt in any case
            self.problem(f"{name}: {one_line(error)}")
            return self.found
        self.found.fingerprint = marker["fingerprint"]
        rows_intact = self._hashed(self.metadata, marker["files"][self.metadata], None)
        self._hashed(self.tar, marker["files"][self.tar], self._check_samples if rows_intact else None)
        return self.found

    def _regular(self, name: str, expected: int | None) -> bool:
        """Whether a file may be read: it is there, no device, and of the expected size."""
        try:
            check_regular(self.corpus, name, expected)
            return True
        except FileNotFoundError as error:
            self.problem(f"{name}: {'missing' if expected is not None else one_line(error)}")
        except ValueError as error:
            self.problem(f"{name}: {error}")
        except Exception as error:  # of the storage
            self.problem(f"{name}: {one_line(error)}")
            self.found.unreadable = True
        return False

    def _hashed(self, name: str, expected: dict[str, Any], check: Callable[[CountedFile], None] | None) -> bool:
        """Reads a file once, from start to end, for its size and checksum and for ``check``, if given."""
        before, large = len(self.found.problems), expected["bytes"] > _LARGE
        if not self._regular(name, expected["bytes"]):
            return False
        if large and name == self.tar and check is None:
            return False  # the shard is corrupt already
        try:
            with self.corpus.fs.open(self.corpus.path(name), "rb") as handle:
                counted = CountedFile(handle)
                if check is not None:
                    self._guarded(name, check, counted)
                elif large:
                    self._guarded(name, self._check_footer, CountedFile(handle))
                    handle.seek(0)
                if large and len(self.found.problems) > before:
                    return False
                counted.drain()
        except Exception as error:  # of the storage
            missing = isinstance(error, FileNotFoundError)
            self.problem(f"{name}: {'missing' if missing else one_line(error)}")
            self.found.unreadable |= not missing
            return False
        if differs := counted.differs(expected):
            self.problem(f"{name}: {differs}")
        return len(self.found.problems) == before

    def _guarded(self, name: str, check: Callable[[CountedFile], None], handle: CountedFile) -> None:
        try:
            check(handle)
        except Exception as error:  # of readers, or of the storage
            self.problem(f"{name}: {one_line(error)}")
            self.found.unreadable |= handle.failed

    def _check_samples(self, handle: CountedFile) -> None:
        """Compares the tar, sample by sample, with the rows."""
        samples = read_samples(handle)  # type: ignore[arg-type]
        assert self.found.counts is not None
        seen = {"rows": 0, "ok": 0, "failed": 0}
        keys: set[int] = set()
        for row in self._rows():
            self._check_row(row, keys)
            seen["rows"] += 1
            seen["ok" if row["status"] == "ok" else "failed"] += 1
            if row["status"] == "ok":
                key = row["key"]
                found, files = next(samples, (None, {}))
                if found != key:
                    self.problem(f"{self.tar}: {'ends' if found is None else f'holds {found!r}'} where {key!r} belongs")
                    return
                for text in _sample_problems(row, files, self.sidecar, self.text):
                    self.problem(f"{self.tar}: {key}: {text}")
            self._give_up_at(_MOST)
        for found, _ in samples:
            self.problem(f"{self.tar}: holds {found!r}, which is no row's")
            self._give_up_at(_MOST)
        for name, number in seen.items():
            if self.found.counts[name] != number:
                self.problem(f"{self.metadata}: {number} {name}, its marker says {self.found.counts[name]}")

    def _check_row(self, row: dict[str, Any], keys: set[int]) -> None:
        key, hashed = row["key"], key_hash(row["key"])
        if hashed in keys:
            self.problem(f"{self.metadata}: key {key!r} occurs twice in the shard")
        else:
            keys.add(hashed)
            self.found.keys.append(hashed)
        if IMAGE.name in row and _image_hash(row[IMAGE.name]) != row["sha256"]:
            self.problem(f"{self.metadata}: {key}: the SHA-256 of the image in it is not its row's")
        file = str(row["file"])
        if row["status"] == "ok" and file.rpartition(".")[0] != f"{self.tar}/{key}":
            self.problem(f"{self.metadata}: {key}: its file is {file!r}, which is not in {self.tar}")

    def _give_up_at(self, most: int) -> None:
        if len(self.found.problems) >= most:
            raise Hopeless(f"not checked further, after {most} problems")

    def _rows(self) -> Iterator[dict[str, Any]]:
        """Reads the table a second time, after it was found to be as its marker says."""
        try:
            opened = self.corpus.fs.open(self.corpus.path(self.metadata), "rb")
        except Exception:
            self.found.unreadable = True
            raise
        with opened:
            table = CountedFile(opened)
            try:
                self._check_footer(table)
                yield from _rows_of(table, self.text)
            finally:
                self.found.unreadable |= table.failed

    def _check_footer(self, handle: CountedFile) -> None:
        """Raises ValueError where the table's own description does not fit the marker, or unfolds to too much."""
        assert self.found.counts is not None
        metadata = pq.read_metadata(handle)
        if metadata.num_rows != self.found.counts["rows"]:
            raise ValueError(f"{metadata.num_rows} rows, its marker says {self.found.counts['rows']}")
        schema = metadata.schema.to_arrow_schema()
        for name in _COMPARED:
            if name not in schema.names or schema.field(name).type != SCHEMA.field(name).type:
                raise ValueError(f"has no column {name!r} of type {SCHEMA.field(name).type}")
        if self.text is not None and (self.text not in schema.names or schema.field(self.text).type != pa.string()):
            raise ValueError(f"has no column {self.text!r} of type string, which the texts of its images are of")
        limit = _LARGEST_ROW_GROUP * (4 if IMAGE.name in schema.names else 1)
        for group in (metadata.row_group(i) for i in range(metadata.num_row_groups)):
            chunks = [group.column(i) for i in range(group.num_columns)]
            read = (*_COMPARED, self.text or CAPTION, IMAGE.name)
            size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.partition(".")[0] in read)
            if size > limit:
                raise ValueError(f"a row group unfolds to {size} bytes; allowed: {limit} or fewer")


def _rows_of(handle: CountedFile, text: str | None) -> Iterator[dict[str, Any]]:
    """The compared columns and the one of the texts, row by row; long texts that many rows share are decoded a few at a time."""
    known = {field.name: field.type for field in pq.read_schema(handle)}
    texts = [name for name in dict.fromkeys([*_TEXTS, text or CAPTION]) if name in known and pa.types.is_string(known[name])]
    file = pq.ParquetFile(handle, buffer_size=CHUNK, read_dictionary=texts)
    columns = list(dict.fromkeys([*_COMPARED, *texts]))
    columns += [IMAGE.name] if IMAGE.name in known else []
    for batch in file.iter_batches(_EMBEDDED if IMAGE.name in columns else _BATCH, columns=columns):
        longest = max(_longest(batch.column(name)) for name in texts)
        step = max(1, _DECODED // max(1, longest * len(texts)))
        for start in range(0, batch.num_rows, step):
            yield from batch.slice(start, step).to_pylist()


def _longest(column: pa.Array) -> int:
    """Bytes of the longest text in a column."""
    texts = column.dictionary if pa.types.is_dictionary(column.type) else column
    return pc.max(pc.binary_length(texts)).as_py() or 0


def _image_hash(image: dict[str, Any] | None) -> str | None:
    return None if image is None else hashlib.sha256(image["bytes"]).hexdigest()


def _sample_problems(row: dict[str, Any], files: dict[str, bytes], sidecar: bool | None, text: str | None) -> Iterator[str]:
    """The problems of one sample: its text, its JSON, its image."""
    extension = str(row["file"]).rpartition(".")[2]
    sidecar = "json" in files if sidecar is None else sidecar
    expected = {extension, "txt"} | ({"json"} if sidecar else set())
    if files.keys() != expected:
        yield f"holds {sorted(files)}, not {sorted(expected)}"
        return
    texts = (text,) if text is not None else ("prompt", CAPTION)
    if files["txt"] not in [str(row[name]).encode() for name in texts if name in row]:
        yield f"its txt is not its {' or its '.join(texts)}"
    if sidecar and (differing := _differing(files["json"], row)):
        yield f"its json differs from its row in {', '.join(differing)}"
    if hashlib.sha256(files[extension]).hexdigest() != row["sha256"]:
        yield "the image's SHA-256 is not its row's"
    try:
        with Image.open(io.BytesIO(files[extension])) as image:
            if image.format != _FORMATS.get(extension) or image.size != (row["width"], row["height"]):
                yield f"the image is {image.format} of {image.size}, its row says {extension} of {(row['width'], row['height'])}"
            image.verify()
    except Exception as error:  # Pillow's readers raise many types on damaged data
        yield f"the image can't be read ({one_line(error)})"


def _differing(data: bytes, row: dict[str, Any]) -> list[str]:
    """The columns in which a sample's JSON differs from its row."""
    if len(data) > _LARGEST_JSON:
        raise ValueError(f"its json has {len(data)} bytes; allowed: {_LARGEST_JSON} or fewer")
    copy = parse_json(data)
    nulls = copy.get(NULL_COLUMNS, [])
    return [name for name in _COMPARED if (None if name in nulls else copy.get(name)) != row[name]]


def key_hash(key: str | None) -> int:
    """64 bits that differ for different keys, but for one pair in 2**64."""
    return int.from_bytes(hashlib.blake2b(str(key).encode(), digest_size=8).digest(), "little")


def read_keys(corpus: Corpus, index: int) -> Iterator[str]:
    """The keys of a shard's rows."""
    with corpus.fs.open(corpus.path(metadata_name(index)), "rb") as handle:
        for batch in pq.ParquetFile(handle).iter_batches(_KEYS, columns=["key"]):
            yield from map(str, batch.column(0).to_pylist())
