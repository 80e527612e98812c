"""PSNR, SSIM and LPIPS: torchmetrics' values on the same arrays, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchmetrics.functional.image.lpips as reference
from numpy.typing import NDArray
from torch import nn
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

from hybridiff.errors import UsageError
from hybridiff.evaluate.metrics.pairs import Lpips, LpipsBackbone, LpipsFeatures, load_lpips, lpips, psnr, ssim

BACKBONES: dict[LpipsBackbone, str] = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}


def pair(size: int = 64, rows: int = 3) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    random = np.random.default_rng(size)
    one = random.integers(0, 256, (rows, size, size, 3), dtype=np.uint8)
    noise = random.integers(-20, 21, one.shape) * np.arange(1, rows + 1)[:, None, None, None]
    return one, np.clip(one + noise, 0, 255).astype(np.uint8)


def tensors(images: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255


def test_psnr_and_ssim_are_those_of_torchmetrics() -> None:
    one, two = pair()
    for row in range(len(one)):
        a, b = tensors(one[row : row + 1]), tensors(two[row : row + 1])
        assert psnr(one, two)[row] == pytest.approx(PeakSignalNoiseRatio(data_range=1.0)(a, b).item(), rel=1e-6)
        expected = StructuralSimilarityIndexMeasure(data_range=1.0)(a, b).item()
        assert ssim(one, two)[row] == pytest.approx(expected, rel=1e-6)


def test_equal_images_are_infinitely_near() -> None:
    one, _ = pair()
    assert np.isposinf(psnr(one, one)).all() and np.allclose(ssim(one, one), 1)
    assert psnr(one[:1], one[:1]).shape == ssim(one[:1], one[:1]).shape == (1,)


def test_ssim_of_tiny_images_is_refused() -> None:
    one, two = pair(10)
    with pytest.raises(UsageError, match="10 x 10 pixels; allowed: 11 or more"):
        ssim(one, two)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_lpips_is_that_of_torchmetrics_on_a_backbone_of_random_weights(
    backbone: LpipsBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    features = LpipsFeatures(backbone)
    torch.save({**features.state_dict(), "classifier.6.weight": torch.zeros(1)}, tmp_path / "backbone.pth")
    monkeypatch.setattr(
        reference, "_get_tv_model_features", lambda net, pretrained: {BACKBONES[backbone]: features.features}[net]
    )
    monkeypatch.setattr("torchmetrics.image.lpip._TORCHVISION_AVAILABLE", True)
    one, two = pair(rows=2)
    network = load_lpips(tmp_path / "backbone.pth", backbone)
    theirs = LearnedPerceptualImagePatchSimilarity(net_type=backbone, normalize=True)
    expected = [theirs(tensors(one[i : i + 1]).float(), tensors(two[i : i + 1]).float()).item() for i in range(2)]
    assert lpips(network, one, two) == pytest.approx(expected, rel=1e-4)
    assert min(expected) > 0 and np.allclose(lpips(network, one, one), 0)


def test_lpips_without_weights_adds_all_channels() -> None:
    one, two = pair(rows=2)
    pool = nn.AvgPool2d(4)
    found = lpips(Lpips(lambda images: [pool(images)]), one, two)
    maps = [pool(2 * tensors(images) - 1) for images in (one, two)]
    units = [m / m.square().sum(1, keepdim=True).sqrt() for m in maps]
    assert found == pytest.approx((units[0] - units[1]).square().sum(1).mean((1, 2)).numpy(), rel=1e-4)


def test_a_backbone_that_is_none_is_refused(tmp_path: Path) -> None:
    other, broken = tmp_path / "other.pth", tmp_path / "broken.safetensors"
    torch.save({"features.0.weight": torch.zeros(64, 3, 11, 11)}, other)
    broken.write_bytes(b"no weights")
    with pytest.raises(UsageError, match=r"lacks 'features\.0\.bias' of shape \(64,\); allowed: torchvision's"):
        load_lpips(other)
    with pytest.raises(UsageError, match="can't be read"):
        load_lpips(broken)
    with pytest.raises(UsageError, match="no file; allowed"):
        load_lpips(tmp_path / "absent.pth")
    with pytest.raises(UsageError, match="resnet"):
        load_lpips(other, "resnet")  # type: ignore[arg-type]


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "vgg.pth"
    torch.save(LpipsFeatures("alex").state_dict() | {"features.0.weight": torch.zeros(1)}, file)
    with pytest.raises(UsageError, match="LPIPS's backbone"):
        load_lpips(file)
