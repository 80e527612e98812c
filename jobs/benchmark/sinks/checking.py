"""Megabytes per second of ``verify``, against sha256sum of the same files."""

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from statistics import median

from hybridiff.corpus import verify
from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.layout import metadata_name, tar_name
from hybridiff.images import Encoder
from jobs.benchmark.sinks.config import SinksConfig
from jobs.benchmark.sinks.photographs import photograph
from jobs.benchmark.sinks.places import Place
from jobs.benchmark.sinks.shards import Shards, encode_and_hash, make_results

PICTURES = 4  # different ones
MB = 1e6


@dataclass(frozen=True)
class CheckingRow:
    """A corpus at one url, in one format.

    Args:
        url: Where it is.
        image_format: Of its images.
        shards: In the corpus.
        megabytes: Of all tars and Parquet files.
        processes: Of ``verify``.
        verify_mb_s: With these processes, their start included.
        sha256sum_mb_s: Of coreutils' program, one process; None where it is not installed or the files are not local.
        ratio: The median over the rounds.
    """

    url: str
    image_format: str
    shards: int
    megabytes: float
    processes: int
    verify_mb_s: float
    sha256sum_mb_s: float | None
    ratio: float | None


def measure_checking(config: SinksConfig, places: list[Place], cores: int) -> list[CheckingRow]:
    """Measures each format at each place; for one rank."""
    return [_measure(config, place, name, cores) for place in places for name in config.formats]


def _measure(config: SinksConfig, place: Place, image_format: str, cores: int) -> CheckingRow:
    corpus, count = Corpus(f"{place.url}/verified-{image_format}"), 2 * cores
    _write(config, corpus, image_format, count)
    names = [name for index in range(count) for name in (tar_name(index), metadata_name(index))]
    megabytes = sum(corpus.fs.size(corpus.path(name)) for name in names) / MB
    program = shutil.which("sha256sum") if place.local else None
    rounds = [(_verify(corpus, cores), _sums(program, corpus, names)) for _ in range(config.rounds + 1)][1:]
    place.drop(corpus.url)
    sums = median(other for _, other in rounds)
    return CheckingRow(
        url=place.shown,
        image_format=image_format,
        shards=count,
        megabytes=megabytes,
        processes=cores,
        verify_mb_s=megabytes / median(ours for ours, _ in rounds),
        sha256sum_mb_s=megabytes / sums if program else None,
        ratio=median(other / ours for ours, other in rounds) if program else None,
    )


def _write(config: SinksConfig, corpus: Corpus, image_format: str, count: int) -> None:
    pictures = [photograph(number, config.photograph) for number in range(PICTURES)]
    encoder = Encoder(image_format, config.quality)
    files = [encode_and_hash(encoder, picture) for picture in pictures]
    each = sum(len(file) for file, _ in files) / PICTURES
    rows = max(1, round(config.verified_megabytes * MB / each / count))
    results = make_results(pictures, rows * count)
    shards = Shards(corpus, encoder, rows * count, count)
    for index in range(count):
        shards.write_encoded(index, results[index * rows : (index + 1) * rows], files)


def _verify(corpus: Corpus, processes: int) -> float:
    started = time.perf_counter()
    report = verify(corpus, processes)
    assert report.whole, report.problems
    return time.perf_counter() - started


def _sums(program: str | None, corpus: Corpus, names: list[str]) -> float:
    """Seconds of sha256sum; 0 without it."""
    if program is None:
        return 0.0
    started = time.perf_counter()
    subprocess.run([program, *(os.path.join(corpus.root, name) for name in names)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started
