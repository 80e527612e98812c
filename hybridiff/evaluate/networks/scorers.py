"""Built-in scores of single rows, and everything that a rank computes, with its networks loaded."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hybridiff.errors import UsageError
from hybridiff.evaluate.measure import Distance, Measurements, Score
from hybridiff.evaluate.metrics.pairs import psnr, ssim
from hybridiff.evaluate.networks.feature_networks import Head, Network, load_distance
from hybridiff.evaluate.networks.own_scores import OwnScore
from hybridiff.evaluate.parts import BASE_COLUMNS, EMBEDDING
from hybridiff.evaluate.prepared import Prepared
from hybridiff.evaluate.request import RESERVED
from hybridiff.evaluate.shard_images import Pixels

Vectors = Callable[[str], NDArray[np.float32]]  # name of an extractor: feature vectors of the images of a batch


class ClipScore:
    """Cosine similarity of image and prompt."""

    def __init__(self, clip: Network) -> None:
        self._clip = clip

    def __call__(self, images: Sequence[Pixels], rows: Sequence[dict[str, Any]], vectors: Vectors) -> dict[str, Sequence[Any]]:
        """The column ``clip``."""
        one, two = _unit(vectors("clip")), _unit(self._clip.texts([row["prompt"] for row in rows]))
        return {"clip": (one * two).sum(axis=1).tolist()}


class Aesthetic:
    """A linear head on CLIP embeddings."""

    def __init__(self, head: Head) -> None:
        self._head = head

    def __call__(self, images: Sequence[Pixels], rows: Sequence[dict[str, Any]], vectors: Vectors) -> dict[str, Sequence[Any]]:
        """The column ``aesthetic``."""
        return {"aesthetic": self._head(vectors("clip")).tolist()}


class Nsfw:
    """A column of a classifier's output."""

    def __init__(self, column: int | None) -> None:
        self._column = -1 if column is None else column

    def __call__(self, images: Sequence[Pixels], rows: Sequence[dict[str, Any]], vectors: Vectors) -> dict[str, Sequence[Any]]:
        """The column ``nsfw``.

        Raises:
            UsageError: the output has no such column.
        """
        output = vectors("nsfw")
        if not -output.shape[1] <= self._column < output.shape[1]:
            raise UsageError(f"the extractor 'nsfw' has column {self._column}; allowed: one of its {output.shape[1]} outputs")
        return {"nsfw": output[:, self._column].tolist()}


class Embeddings:
    """The embeddings themselves."""

    def __call__(self, images: Sequence[Pixels], rows: Sequence[dict[str, Any]], vectors: Vectors) -> dict[str, Sequence[Any]]:
        """The column ``embedding``."""
        return {EMBEDDING: list(vectors("clip"))}


def measurements(prepared: Prepared, device: torch.device) -> Measurements:
    """What a rank computes, with the networks that it takes loaded on a device."""
    torch.backends.cudnn.allow_tf32 = False  # else convolutions have 10 bits of mantissa
    request, extractors = prepared.request, prepared.extractors
    loaded = {name: Network(one, device) for name, one in extractors.items() if name not in ("lpips", "aesthetic")}
    distances: dict[str, Distance] = {"psnr": partial(psnr, device=device), "ssim": partial(ssim, device=device)}
    if "lpips" in extractors:
        distances["lpips"] = load_distance(extractors["lpips"], device)
    make: dict[str, Callable[[], Score]] = {
        "clip": lambda: ClipScore(loaded["clip"]),
        "aesthetic": lambda: Aesthetic(Head(extractors["aesthetic"], device)),
        "nsfw": lambda: Nsfw(extractors["nsfw"].column),
        "embeddings": Embeddings,
    }
    taken = {*RESERVED, *BASE_COLUMNS}
    own = {name: OwnScore(kind, taken) for name, kind in prepared.scorers.items()}
    scores = [own[name] if name in own else make[name]() for name in request.scores]
    return Measurements(
        {name: distances[name] for name in request.pair_metrics},
        request.distribution_extractors(),
        lambda name, images: loaded[name](images),
        scores,
    )


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float64)
