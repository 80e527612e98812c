"""How well a bundled model follows captions that it was not trained on."""

from typing import Any

import numpy as np
import torch

from jobs.train_shapes.judge import Score, score
from jobs.train_shapes.pictures import Scene, random_scene

BATCH_SIZE = 16


def held_out_scenes(count: int, seed: int = 7) -> list[Scene]:
    """Scenes whose captions are kept from training, always the same ones first."""
    rng = np.random.default_rng(seed)
    return [random_scene(rng, held_out=True) for _ in range(count)]


def measure(pipeline: Any, scenes: list[Scene], steps: int = 50, guidance_scale: float = 5.0) -> Score:
    """Draws each scene's caption once, image i with seed i, and judges the pictures."""
    pictures = []
    for start in range(0, len(scenes), BATCH_SIZE):
        batch = scenes[start : start + BATCH_SIZE]
        seeds = range(start, start + len(batch))
        pictures += pipeline(
            [scene.caption for scene in batch],
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            **({"max_sequence_length": 8} if hasattr(pipeline, "transformer") else {}),
        ).images
    return score([np.asarray(picture) for picture in pictures], scenes)
