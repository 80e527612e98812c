"""Megabytes per second of writing a shard, beside a plain put of the same files, and of ``verify``, beside sha256sum."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from hybridiff.corpus import verify
from hybridiff.corpus.corpus import Corpus
from hybridiff.corpus.layout import marker_name, metadata_name, stats_name, tar_name
from hybridiff.images import Encoder
from jobs.benchmark.config import CorpusConfig
from jobs.benchmark.corpus.folders import OutputFolder
from jobs.benchmark.corpus.synthetic import SyntheticCorpus, encode_and_hash, make_results, photograph

IMAGES = 4  # different ones
MB = 1e6
TARGET = 0.8  # of put
ENCODER, STORAGE, PACKING = "the encoder", "the storage", "tar + Parquet + upload"


@dataclass(frozen=True)
class WritingTimes:
    """Seconds of one round.

    Args:
        written: writing a shard, encoding included.
        stored: writing a shard of encoded images.
        put: put of the same files, until they are on the disk.
        unsynced: put alone.
        encoded: encoding IMAGES images, in CPU seconds.
    """

    written: float
    stored: float
    put: float
    unsynced: float
    encoded: float


@dataclass(frozen=True)
class WritingRow:
    """Writing a shard to one url, in one format. MB are those of the tar and the Parquet file.

    Args:
        url: destination.
        image_format: format of the images.
        images: images in the shard.
        megabytes: size of the shard.
        encode_mb_s: encoder alone, per CPU second.
        encoders: threads that encode at once.
        written_mb_s: encode + tar + Parquet + upload.
        stored_mb_s: tar + Parquet + upload of encoded images.
        put_mb_s: fsspec's put of the same files; of local ones until they are on the disk, as after a commit.
        unsynced_put_mb_s: put alone.
        ratio: with the encoder, over put: the median over the rounds.
        stored_ratio: without the encoder, over put.
        bound_by: the slowest part.
        of_bound: with the encoder, over the slowest part alone.
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


@dataclass(frozen=True)
class VerifyRow:
    """Verifying a corpus at one url, in one format.

    Args:
        url: url of the corpus.
        image_format: format of its images.
        shards: number of shards.
        megabytes: size of all tars and Parquet files.
        processes: processes of ``verify``.
        verify_mb_s: ``verify`` with these processes, their start included.
        sha256sum_mb_s: coreutils' program, one process; None where it is not installed or the files are not local.
        ratio: ``verify`` over sha256sum: the median over the rounds.
        cpu_ratio: the same by CPU seconds of all processes.
    """

    url: str
    image_format: str
    shards: int
    megabytes: float
    processes: int
    verify_mb_s: float
    sha256sum_mb_s: float | None
    ratio: float | None
    cpu_ratio: float | None


def measure_writing(config: CorpusConfig, folders: list[OutputFolder], encoders: int) -> Iterator[WritingRow]:
    """Measures each format in each folder, on one rank."""
    images = [photograph(number, config.photograph) for number in range(IMAGES)]
    for folder in folders:
        for image_format in config.formats:
            yield _measure_writing(config, folder, image_format, images, encoders)


def _measure_writing(
    config: CorpusConfig, folder: OutputFolder, image_format: str, images: list[NDArray[np.uint8]], encoders: int
) -> WritingRow:
    encoder = Encoder(image_format, config.quality)
    files = [encode_and_hash(encoder, image) for image in images]
    each = sum(len(file) for file, _ in files) / IMAGES
    results = make_results(images, max(IMAGES, round(config.megabytes * MB / each)))
    times: list[WritingTimes] = []
    for number in range(config.rounds + 1):
        url = f"{folder.url}/shards-{number}-{image_format}"
        shards = SyntheticCorpus(Corpus(url), encoder, rows=2 * len(results), shards=2)
        encoded = sum(_seconds(encode_and_hash, encoder, image, clock=time.thread_time) for image in images)
        written = _seconds(shards.write, 0, results)
        stored = _seconds(shards.write_encoded, 1, results, files)
        unsynced, synced = _put(folder, shards.corpus)
        times.append(WritingTimes(written, stored, unsynced + synced, unsynced, encoded))
        size = sum(shards.corpus.fs.size(shards.corpus.path(name)) for name in (tar_name(1), metadata_name(1)))
        folder.remove(url)
    return make_row((folder.label, image_format, len(results)), size / MB, each * IMAGES / MB, encoders, times[1:])


def _put(folder: OutputFolder, corpus: Corpus) -> tuple[float, float]:
    """Seconds of putting a shard's files, and then of flushing them to the disk."""
    with TemporaryDirectory(prefix="hybridiff-put-") as temporary:
        targets = {}
        for name in (tar_name(1), metadata_name(1), stats_name(1), marker_name(1)):
            copy, target = str(Path(temporary, name.replace("/", "-"))), corpus.path(f"put/{name}")
            corpus.fs.get_file(corpus.path(name), copy)
            folder.make_parent(target)
            targets[copy] = target
        put = sum(_seconds(corpus.fs.put_file, copy, target) for copy, target in targets.items())
        return put, sum(_seconds(folder.sync, target) for target in targets.values())


def _seconds(work: Callable[..., object], *arguments: object, clock: Callable[[], float] = time.perf_counter) -> float:
    started = clock()
    work(*arguments)
    return clock() - started


def make_row(
    shard: tuple[str, str, int], megabytes: float, encoded_mb: float, encoders: int, times: list[WritingTimes]
) -> WritingRow:
    """The row of a shard.

    Args:
        shard: url, format, images.
        megabytes: size of the shard.
        encoded_mb: size of the files that each round's encoding alone produced.
        encoders: threads that encode at once.
        times: measured rounds.
    """
    written, stored, put = (median(each) for each in zip(*((t.written, t.stored, t.put) for t in times), strict=True))
    encode_mb_s = encoded_mb / median(t.encoded for t in times)
    parts = {ENCODER: megabytes / (encode_mb_s * encoders), STORAGE: put, PACKING: stored if stored > put / TARGET else 0.0}
    slowest = max(parts, key=lambda name: parts[name])
    return WritingRow(
        *shard,
        megabytes=megabytes,
        encode_mb_s=encode_mb_s,
        encoders=encoders,
        written_mb_s=megabytes / written,
        stored_mb_s=megabytes / stored,
        put_mb_s=megabytes / put,
        unsynced_put_mb_s=megabytes / median(t.unsynced for t in times),
        ratio=median(t.put / t.written for t in times),
        stored_ratio=median(t.put / t.stored for t in times),
        bound_by=slowest,
        of_bound=parts[slowest] / written,
    )


def measure_verify(config: CorpusConfig, folders: list[OutputFolder], cores: int) -> Iterator[VerifyRow]:
    """Measures each format in each folder, on one rank."""
    for folder in folders:
        for image_format in config.formats:
            yield _measure_verify(config, folder, image_format, cores)


def _measure_verify(config: CorpusConfig, folder: OutputFolder, image_format: str, cores: int) -> VerifyRow:
    corpus, count = Corpus(f"{folder.url}/verified-{image_format}"), 2 * cores
    _write_corpus(config, corpus, image_format, count)
    names = [name for index in range(count) for name in (tar_name(index), metadata_name(index))]
    megabytes = sum(corpus.fs.size(corpus.path(name)) for name in names) / MB
    program = shutil.which("sha256sum") if folder.local else None
    works = (partial(_verify, corpus, cores), partial(_sha256sum, program, corpus, names))
    rounds = [[_spent(work) for work in works] for _ in range(config.rounds + 1)][1:]
    folder.remove(corpus.url)
    return VerifyRow(
        url=folder.label,
        image_format=image_format,
        shards=count,
        megabytes=megabytes,
        processes=cores,
        verify_mb_s=megabytes / median(verified.wall for verified, _ in rounds),
        sha256sum_mb_s=megabytes / median(summed.wall for _, summed in rounds) if program else None,
        ratio=median(summed.wall / verified.wall for verified, summed in rounds) if program else None,
        cpu_ratio=median(summed.cpu / verified.cpu for verified, summed in rounds) if program else None,
    )


def _write_corpus(config: CorpusConfig, corpus: Corpus, image_format: str, count: int) -> None:
    images = [photograph(number, config.photograph) for number in range(IMAGES)]
    encoder = Encoder(image_format, config.quality)
    files = [encode_and_hash(encoder, image) for image in images]
    each = sum(len(file) for file, _ in files) / IMAGES
    rows = max(1, round(config.verified_megabytes * MB / each / count))
    results = make_results(images, rows * count)
    shards = SyntheticCorpus(corpus, encoder, rows * count, count)
    for index in range(count):
        shards.write_encoded(index, results[index * rows : (index + 1) * rows], files)


@dataclass(frozen=True)
class Spent:
    """Seconds by the clock, and CPU seconds of this process and of its children that have ended."""

    wall: float
    cpu: float


def _spent(work: Callable[[], object]) -> Spent:
    before = os.times()
    wall = _seconds(work)
    return Spent(wall, sum(os.times()[:4]) - sum(before[:4]))


def _verify(corpus: Corpus, processes: int) -> None:
    report = verify(corpus, processes)
    assert report.whole, report.problems


def _sha256sum(program: str | None, corpus: Corpus, names: list[str]) -> None:
    if program is not None:
        files = [os.path.join(corpus.root, name) for name in names]
        subprocess.run([program, *files], check=True, stdout=subprocess.DEVNULL)
