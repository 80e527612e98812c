"""FID and LPIPS of a row on the features of the CLIP that was trained on shapes.

Both are named after it: features of other networks give other numbers, and those of InceptionV3 say little of plain shapes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridiff.evaluate.metrics.distributions import Frechet
from hybridiff.evaluate.metrics.pairs import Lpips
from jobs.train_shapes.clip import BUNDLED
from jobs.train_shapes.evaluation import held_out_scenes
from jobs.train_shapes.scenes import render

DRAWN_SEED = 0  # of the jitter of position, size and shade


@dataclass(frozen=True)
class Distances:
    """Distances of a row's images on the features of the shapes CLIP.

    Args:
        fid_baseline: Fréchet distance to the baseline's images.
        fid_rendered: Fréchet distance to rendered images of the same captions.
        lpips: LPIPS to the baseline's images, mean; all channels weigh 1.
    """

    fid_baseline: float
    fid_rendered: float
    lpips: float


class ShapesFeatures:
    """The image half of the shapes CLIP."""

    def __init__(self) -> None:
        from transformers import CLIPModel

        self._clip = CLIPModel.from_pretrained(BUNDLED).eval().requires_grad_(False)
        self._lpips = Lpips(self.maps)

    @torch.inference_mode()
    def vectors(self, images: Tensor) -> NDArray[np.float32]:
        """Embeddings (batch, 64), before they are scaled to unit length, of images (batch, 3, 64, 64) in [0, 1]."""
        return np.asarray(self._clip.visual_projection(self._vision(2 * images - 1).pooler_output).numpy())

    def maps(self, images: Tensor) -> Sequence[Tensor]:
        """Patches' hidden states of each layer as maps (batch, 96, 8, 8), of images in [-1, 1]."""
        states = self._vision(images).hidden_states[1:]
        side = round((states[0].shape[1] - 1) ** 0.5)
        return [state[:, 1:].transpose(1, 2).unflatten(2, (side, side)) for state in states]

    def lpips(self, images: Tensor, references: Tensor) -> list[float]:
        """LPIPS of each pair of images in [0, 1]."""
        distances: list[float] = self._lpips(2 * images - 1, 2 * references - 1).tolist()
        return distances

    def _vision(self, images: Tensor) -> Any:
        return self._clip.vision_model(pixel_values=images, output_hidden_states=True)


def rendered_images(captions: int, seed: int) -> Tensor:
    """Rendered images of the benchmark's captions: (captions, 3, 64, 64) in [0, 1]."""
    random = np.random.default_rng(DRAWN_SEED)
    images = np.stack([render(scene, random) for scene in held_out_scenes(captions, seed)])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def frechet_distance(features: NDArray[np.float32], references: NDArray[np.float32]) -> float:
    """Fréchet distance of two sets of feature vectors, (rows, width)."""
    statistics = []
    for rows in (features, references):
        one = Frechet()
        one.update(rows)
        statistics.append(one)
    return statistics[0].compute(statistics[1])
