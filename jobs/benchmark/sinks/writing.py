"""Megabytes per second of a shard's way to its storage, against a plain put of the same files."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.layout import marker_name, metadata_name, stats_name, tar_name
from hybridiff.images import Encoder
from jobs.benchmark.sinks.config import SinksConfig
from jobs.benchmark.sinks.photographs import photograph
from jobs.benchmark.sinks.places import Place
from jobs.benchmark.sinks.shards import Shards, encode_and_hash, make_results

PICTURES = 4  # different ones
MB = 1e6
BAR = 0.8  # of put
ENCODER, STORAGE, PACKING = "the encoder", "the storage", "tar + Parquet + upload"


@dataclass(frozen=True)
class Taken:
    """Seconds of one round: with the encoder, without, of put until the disk has it, and of put alone; of encoding PICTURES."""

    written: float
    stored: float
    put: float
    unsynced: float
    encoded: float


@dataclass(frozen=True)
class WritingRow:
    """A shard on its way to one url, in one format. MB are those of the tar and the Parquet file.

    Args:
        url: Where it went.
        image_format: Of its images.
        images: In the shard.
        megabytes: Of the shard.
        encode_mb_s: Of the encoder alone, on one thread.
        encoders: Threads that encode at once.
        written_mb_s: Of encode + tar + Parquet + upload.
        stored_mb_s: Of tar + Parquet + upload, the images encoded already.
        put_mb_s: Of fsspec's put of the same files; of local ones until the disk has them, which a commit waits for too.
        unsynced_put_mb_s: Of put alone.
        ratio: With the encoder, by put: the median over the rounds.
        stored_ratio: Without.
        bound_by: The slowest part.
        of_bound: With the encoder, by the slowest part alone.
    """

    url: str
    image_format: str
    images: int
    megabytes: float
    encode_mb_s: float
    encoders: int
    written_mb_s: float
    stored_mb_s: float
    put_mb_s: float
    unsynced_put_mb_s: float
    ratio: float
    stored_ratio: float
    bound_by: str
    of_bound: float


def measure_writing(config: SinksConfig, places: list[Place], encoders: int) -> list[WritingRow]:
    """Measures each format at each place; for one rank."""
    pictures = [photograph(number, config.photograph) for number in range(PICTURES)]
    return [_measure(config, place, name, pictures, encoders) for place in places for name in config.formats]


def _measure(
    config: SinksConfig, place: Place, image_format: str, pictures: list[NDArray[np.uint8]], encoders: int
) -> WritingRow:
    encoder = Encoder(image_format, config.quality)
    files = [encode_and_hash(encoder, picture) for picture in pictures]
    each = sum(len(file) for file, _ in files) / PICTURES
    results = make_results(pictures, max(PICTURES, round(config.megabytes * MB / each)))
    taken: list[Taken] = []
    for number in range(config.rounds + 1):
        url = f"{place.url}/shards-{number}-{image_format}"
        shards = Shards(Corpus(url), encoder, rows=2 * len(results), shards=2)
        encoded = sum(_seconds(encode_and_hash, encoder, picture) for picture in pictures)
        written = _seconds(shards.write, 0, results)
        stored = _seconds(shards.write_encoded, 1, results, files)
        unsynced, synced = _put(place, shards.corpus)
        taken.append(Taken(written, stored, unsynced + synced, unsynced, encoded))
        size = sum(shards.corpus.fs.size(shards.corpus.path(name)) for name in (tar_name(1), metadata_name(1)))
        place.drop(url)
    return make_row((place.shown, image_format, len(results)), size / MB, each * PICTURES / MB, encoders, taken[1:])


def _put(place: Place, corpus: Corpus) -> tuple[float, float]:
    """Seconds of putting a shard's files, and then of waiting for the disk."""
    with TemporaryDirectory(prefix="hybridiff-put-") as folder:
        names = {}
        for name in (tar_name(1), metadata_name(1), stats_name(1), marker_name(1)):
            copy, target = str(Path(folder, name.replace("/", "-"))), corpus.path(f"put/{name}")
            corpus.fs.get_file(corpus.path(name), copy)
            place.make_parent(target)
            names[copy] = target
        put = sum(_seconds(corpus.fs.put_file, copy, target) for copy, target in names.items())
        return put, sum(_seconds(place.sync, target) for target in names.values())


def _seconds(work: Callable[..., object], *arguments: object) -> float:
    started = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - started


def make_row(what: tuple[str, str, int], megabytes: float, encoded_mb: float, encoders: int, taken: list[Taken]) -> WritingRow:
    """What the rounds of one row say.

    Args:
        what: Url, format, images.
        megabytes: Of the shard.
        encoded_mb: Of the files that each round's encoding alone made.
        encoders: Threads that encode at once.
        taken: The rounds that count.
    """
    written, stored, put = (median(times) for times in zip(*((t.written, t.stored, t.put) for t in taken), strict=True))
    encode_mb_s = encoded_mb / median(t.encoded for t in taken)
    parts = {ENCODER: megabytes / (encode_mb_s * encoders), STORAGE: put, PACKING: stored if stored > put / BAR else 0.0}
    slowest = max(parts, key=lambda name: parts[name])
    return WritingRow(
        *what,
        megabytes=megabytes,
        encode_mb_s=encode_mb_s,
        encoders=encoders,
        written_mb_s=megabytes / written,
        stored_mb_s=megabytes / stored,
        put_mb_s=megabytes / put,
        unsynced_put_mb_s=megabytes / median(t.unsynced for t in taken),
        ratio=median(t.put / t.written for t in taken),
        stored_ratio=median(t.put / t.stored for t in taken),
        bound_by=slowest,
        of_bound=parts[slowest] / written,
    )
