"""What is computed of a batch of images: checks, metrics of pairs, feature vectors and scores; each row by itself."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridiff.evaluate.metrics.image_checks import Fingerprint, ImageChecks
from hybridiff.evaluate.parts import FEATURES, REFERENCE, Unit
from hybridiff.evaluate.shard_images import Pixels

NOT_FINITE = "not finite"  # in the error of a row whose image or latents held NaN
Distance = Callable[[NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.float64]]  # of two batches of images
Features = Callable[[str, Sequence[Pixels]], NDArray[np.float32]]  # name of an extractor, images: vectors (images, width)
Score = Callable[[Sequence[Pixels], Sequence[dict[str, Any]], Callable[[str], NDArray[np.float32]]], dict[str, Sequence[Any]]]


@dataclass(frozen=True)
class Seen:
    """An image, decoded.

    Args:
        pixels: its pixels.
        checks: what is wrong with it; None for images of a reference, which are not checked.
        known_by: what its duplicates are known by; likewise.
    """

    pixels: Pixels
    checks: ImageChecks | None = None
    known_by: Fingerprint | None = None


@dataclass(frozen=True)
class ImageBatch:
    """Consecutive images of a unit.

    Args:
        unit: the unit.
        rows: row of each image, as the corpus has it; empty for a reference that has none.
        images: decoded images; None for rows that failed.
        partners: images that each is compared with, if any.
        last: whether it completes the unit.
    """

    unit: Unit
    rows: Sequence[dict[str, Any]]
    images: Sequence[Seen | None]
    partners: Sequence[Seen | None]
    last: bool


class Measurements:
    """Measures batches.

    Args:
        pairs: metrics of pairs by name.
        distributions: names of the extractors whose features are kept.
        features: computes feature vectors.
        scores: own and built-in scores of rows.
    """

    def __init__(
        self,
        pairs: Mapping[str, Distance],
        distributions: Sequence[str] = (),
        features: Features | None = None,
        scores: Sequence[Score] = (),
    ) -> None:
        self._pairs = pairs
        self._distributions, self._features, self._scores = distributions, features, scores

    def __call__(self, batch: ImageBatch) -> dict[str, list[Any]]:
        """Values by column, one per row; of a reference the feature vectors alone."""
        present = [place for place, image in enumerate(batch.images) if image is not None]
        images = [image.pixels for image in batch.images if image is not None]
        computed: dict[str, NDArray[np.float32]] = {}

        def vectors(name: str) -> NDArray[np.float32]:
            """Feature vectors of the images that are there, computed once."""
            assert self._features is not None
            if name not in computed:
                computed[name] = self._features(name, images)
            return computed[name]

        found: dict[str, Sequence[Any]] = {}
        if images:
            found |= {f"{FEATURES}{name}": list(vectors(name)) for name in self._distributions}
        if batch.unit.place == REFERENCE:
            spread = {name: _spread(values, present, len(batch.images)) for name, values in found.items()}
            return {"failed": [image is None for image in batch.images], **spread}
        rows = [batch.rows[place] for place in present]
        for score in self._scores if images else ():
            found |= score(images, rows, vectors)
        spread = {name: _spread(values, present, len(batch.images)) for name, values in found.items()}
        return {**self._checked(batch), **self._compared(batch), **spread}

    def _checked(self, batch: ImageBatch) -> dict[str, list[Any]]:
        """What is wrong with each row, and what its duplicates are known by."""
        rows: list[dict[str, Any]] = []
        for row, image in zip(batch.rows, batch.images, strict=True):
            values = {
                "key": row["key"],
                "failed": image is None,
                "truncated": bool(row["prompt_truncated"]),
                "width": row["width"],
                "height": row["height"],
                "black": False,
                "flat": False,
                "nan": image is None and NOT_FINITE in (row["error"] or ""),
                "digest": None,
                "phash": None,
                "thumbnail": None,
            }
            if image is not None:
                checks, known_by = image.checks, image.known_by
                assert checks is not None and known_by is not None
                values |= {"black": checks.black, "flat": checks.flat, "nan": checks.nan}
                values |= {"digest": known_by.digest, "phash": known_by.phash, "thumbnail": known_by.thumbnail.tobytes()}
            rows.append(values)
        return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}

    def _compared(self, batch: ImageBatch) -> dict[str, list[Any]]:
        """The metrics of the pairs, by runs of equal sizes."""
        found: dict[str, list[Any]] = {name: [None] * len(batch.images) for name in self._pairs}
        for places in _runs(batch):
            one, two = (_stacked(side, places) for side in (batch.images, batch.partners))
            for name, metric in self._pairs.items():
                for place, value in zip(places, metric(one, two).tolist(), strict=True):
                    found[name][place] = value
        return found


def _runs(batch: ImageBatch) -> Iterator[list[int]]:
    """Places of pairs of equal sizes that follow each other."""
    both = zip(batch.images, batch.partners, strict=True)
    paired = [(place, one.pixels.shape) for place, (one, two) in enumerate(both) if one is not None and two is not None]
    for _, places in groupby(paired, key=lambda pair: pair[1]):
        yield [place for place, _ in places]


def _stacked(images: Sequence[Seen | None], places: Sequence[int]) -> NDArray[np.uint8]:
    return np.stack([image.pixels for image in (images[place] for place in places) if image is not None])


def _spread(values: Sequence[Any], places: Sequence[int], rows: int) -> list[Any]:
    """Values of some rows among all rows, None for the others."""
    spread: list[Any] = [None] * rows
    for place, value in zip(places, values, strict=True):
        spread[place] = value
    return spread
