"""Batches of images of a unit: read, decoded one batch ahead on other threads, each with the image it is compared with."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from hybridiff.corpus.layout import tar_name
from hybridiff.corpus.reader import damaged
from hybridiff.evaluate.matching import CorpusRows
from hybridiff.evaluate.measure import ImageBatch, Seen
from hybridiff.evaluate.metrics.image_checks import fingerprint, image_checks
from hybridiff.evaluate.parts import REFERENCE, Unit
from hybridiff.evaluate.prepared import Prepared, Target
from hybridiff.evaluate.real_images import RealImages
from hybridiff.evaluate.shard_images import ImagesByKey, decode, shard_rows
from hybridiff.secrets import one_line

_THREADS = 4
_Decode = Callable[[], Seen | None]
_Look = Callable[[CorpusRows, int, bytes], Seen]
_Encoded = tuple[dict[str, Any], _Decode | None, _Decode | None]  # row, its image, its partner's
_Decoding = tuple[dict[str, Any], "Future[Seen | None] | None", "Future[Seen | None] | None"]


def batches(prepared: Prepared, unit: Unit) -> Iterator[ImageBatch]:
    """The batches of a unit, one at least.

    Raises:
        ShardDamaged: a shard can't be read, or holds an image that is none.
    """
    size = prepared.request.batch_size
    if unit.place != REFERENCE:
        target = prepared.targets[unit.place]
        yield from _decoded(unit, _pairs(target, prepared.reference, unit.index, size))
    elif isinstance(prepared.reference, CorpusRows):
        yield from _decoded(unit, _alone(prepared.reference, unit.index, size, _seen))
    elif prepared.reference is not None:
        files = prepared.reference.files(unit.index, size)
        yield from _decoded(unit, ([({}, partial(_readable, data), None) for data in some] for some in files))


def _alone(rows: CorpusRows, shard: int, size: int, look: _Look) -> Iterator[list[_Encoded]]:
    for some in shard_rows(rows.corpus, shard, size):
        yield [(row, partial(look, rows, shard, data) if data else None, None) for row, data in some]


def _pairs(target: Target, reference: "CorpusRows | RealImages | None", shard: int, size: int) -> Iterator[list[_Encoded]]:
    partners = target.matches.of_shard(shard) if target.matches is not None else {}
    there = reference if partners and isinstance(reference, CorpusRows) else None
    images = ImagesByKey(there.corpus) if there else None
    number = 0
    try:
        for some in _alone(target.rows, shard, size, _checked):
            encoded: list[_Encoded] = []
            for row, image, _ in some:
                partner = partners.get(number)
                other = partial(_seen, there, partner[0], images.read(*partner)) if there and images and partner else None
                encoded.append((row, image, other))
                number += 1
            yield encoded
    finally:
        if images is not None:
            images.close()


def _decoded(unit: Unit, encoded: Iterator[list[_Encoded]]) -> Iterator[ImageBatch]:
    with ThreadPoolExecutor(min(_THREADS, len(os.sched_getaffinity(0)))) as threads:

        def start(look: _Decode | None) -> "Future[Seen | None] | None":
            return threads.submit(look) if look else None

        ahead: list[_Decoding] = []
        for some in encoded:
            following = [(row, start(image), start(partner)) for row, image, partner in some]
            if ahead:
                yield _batch(unit, ahead, last=False)
            ahead = following
        yield _batch(unit, ahead, last=True)


def _batch(unit: Unit, decoding: list[_Decoding], last: bool) -> ImageBatch:
    images = [image.result() if image else None for _, image, _ in decoding]
    partners = [partner.result() if partner else None for _, _, partner in decoding]
    return ImageBatch(unit, [row for row, _, _ in decoding], images, partners, last)


def _checked(rows: CorpusRows, shard: int, data: bytes) -> Seen:
    pixels = _seen(rows, shard, data).pixels
    return Seen(pixels, image_checks(pixels), fingerprint(pixels))


def _seen(rows: CorpusRows, shard: int, data: bytes) -> Seen:
    try:
        return Seen(decode(data))
    except Exception as error:  # Pillow's readers raise many types on damaged data
        raise damaged(rows.corpus, tar_name(shard), f"an image can't be read: {one_line(error)}") from error


def _readable(data: bytes) -> Seen | None:
    """An image of a reference; None if the file is none."""
    try:
        return Seen(decode(data))
    except Exception:  # Pillow's readers raise many types on damaged data
        return None
