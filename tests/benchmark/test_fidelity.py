"""PSNR and SSIM against values calculated by hand."""

import math

import pytest
import torch

from jobs.benchmark.fidelity import psnr, ssim, summarise


def test_psnr_of_an_offset_is_that_of_its_square() -> None:
    images = torch.full((2, 3, 16, 16), 0.5)
    references = images.clone()
    references[0] += 0.1
    references[1] += 0.01
    assert psnr(images, references).tolist() == pytest.approx([20.0, 40.0], abs=1e-4)


def test_psnr_of_bytes_has_a_peak_of_255() -> None:
    black, grey = torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.full((1, 8, 8, 3), 51, dtype=torch.uint8)
    assert psnr(black, grey).item() == pytest.approx(20 * math.log10(5))


def test_identical_images() -> None:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert psnr(images, images).tolist() == [math.inf, math.inf]
    assert ssim(images, images).tolist() == pytest.approx([1.0, 1.0])


def test_ssim_of_flat_images_is_its_luminance_term() -> None:
    first, second = torch.full((1, 3, 16, 16), 0.5), torch.full((1, 3, 16, 16), 0.7)
    c1 = 0.01**2
    assert ssim(first, second).item() == pytest.approx((2 * 0.5 * 0.7 + c1) / (0.5**2 + 0.7**2 + c1), abs=1e-6)


def test_each_image_has_an_ssim_of_its_own() -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    noisy = images.clone()
    noisy[1] = (noisy[1] + 0.3 * torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    values = ssim(images, noisy).tolist()
    assert values[0] == pytest.approx(1.0) and 0.1 < values[1] < 0.95


def test_the_summary_has_median_and_worst_and_caps_the_infinite() -> None:
    found = summarise([30.0, math.inf, 40.0, math.inf], [0.5, 1.0, 0.9, 1.0])
    assert (found.psnr_median, found.psnr_worst) == (70.0, 30.0)
    assert (found.ssim_median, found.ssim_worst) == (0.95, 0.5)
