"""What is computed of a batch of images: checks, metrics of pairs, feature vectors and scores; each row by itself."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridiff.evaluate.image_checks import fingerprint, image_checks
from hybridiff.evaluate.pairs import psnr, ssim
from hybridiff.evaluate.parts import FEATURES, REFERENCE, Unit
from hybridiff.evaluate.shard_images import Pixels

NOT_FINITE = "not finite"  # in the error of a row whose image or latents held NaN
Features = Callable[[str, Sequence[Pixels]], NDArray[np.float32]]  # name of an extractor, images: vectors (images, width)
Score = Callable[[Sequence[Pixels], Sequence[dict[str, Any]], Callable[[str], NDArray[np.float32]]], dict[str, Sequence[Any]]]


@dataclass(frozen=True)
class ImageBatch:
    """Consecutive images of a unit.

    Args:
        unit: the unit.
        rows: row of each image, as the corpus has it; empty for a reference that has none.
        images: pixels; None for rows that failed.
        partners: pixels that each is compared with, if any.
        last: whether it completes the unit.
    """

    unit: Unit
    rows: Sequence[dict[str, Any]]
    images: Sequence[Pixels | None]
    partners: Sequence[Pixels | None]
    last: bool


class Measurements:
    """Measures batches.

    Args:
        metrics: names of the metrics of pairs.
        distributions: names of the extractors whose features are kept.
        features: computes feature vectors.
        scores: own and built-in scores of rows.
        lpips: LPIPS of two batches of images, if it is among the metrics.
    """

    def __init__(
        self,
        metrics: Sequence[str],
        distributions: Sequence[str] = (),
        features: Features | None = None,
        scores: Sequence[Score] = (),
        lpips: Callable[[Pixels, Pixels], NDArray[np.float64]] | None = None,
    ) -> None:
        known = {"psnr": psnr, "ssim": ssim, "lpips": lpips}
        self._pairs = {name: known[name] for name in metrics}
        self._distributions, self._features, self._scores = distributions, features, scores

    def __call__(self, batch: ImageBatch) -> dict[str, list[Any]]:
        """Values by column, one per row; of a reference the feature vectors alone."""
        present = [place for place, image in enumerate(batch.images) if image is not None]
        images = [image for image in batch.images if image is not None]
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
                checks, known_by = image_checks(image), fingerprint(image)
                values |= {"black": checks.black, "flat": checks.flat, "nan": checks.nan}
                values |= {"digest": known_by.digest, "phash": known_by.phash, "thumbnail": known_by.thumbnail.tobytes()}
            rows.append(values)
        return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}

    def _compared(self, batch: ImageBatch) -> dict[str, list[Any]]:
        """The metrics of the pairs, by runs of equal sizes."""
        found: dict[str, list[Any]] = {name: [None] * len(batch.images) for name in self._pairs}
        for places in _runs(batch):
            one, two = (np.stack([side[place] for place in places]) for side in (batch.images, batch.partners))  # type: ignore[misc]
            for name, metric in self._pairs.items():
                assert metric is not None
                for place, value in zip(places, metric(one, two).tolist(), strict=True):
                    found[name][place] = value
        return found


def _runs(batch: ImageBatch) -> Iterator[list[int]]:
    """Places of pairs of equal sizes that follow each other."""
    paired = [
        p for p, (one, two) in enumerate(zip(batch.images, batch.partners, strict=True)) if one is not None and two is not None
    ]
    for _, places in groupby(paired, key=lambda place: np.shape(batch.images[place])):
        yield list(places)


def _spread(values: Sequence[Any], places: Sequence[int], rows: int) -> list[Any]:
    """Values of some rows among all rows, None for the others."""
    spread: list[Any] = [None] * rows
    for place, value in zip(places, values, strict=True):
        spread[place] = value
    return spread
