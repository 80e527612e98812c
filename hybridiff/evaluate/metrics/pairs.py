"""Metrics of pairs of images: PSNR, SSIM and LPIPS, by torchmetrics' definitions."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hybridiff.errors import UsageError, require_choice

Images = NDArray[np.uint8]  # (batch, height, width, 3)
FeatureMaps = Callable[
    [Tensor], Sequence[Tensor]
]  # (batch, 3, height, width) in [-1, 1] to maps (batch, channels, height, width)
LpipsBackbone = Literal["alex", "vgg", "squeeze"]

_BELL = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
SSIM_WINDOW = (_BELL / _BELL.sum()).tolist()  # a Gaussian of sigma 1.5
SSIM_C1, SSIM_C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
DEFINITIONS = {
    "psnr": "10 log10(255^2 / MSE) dB of 8-bit RGB images over all pixels and channels, the same as a data range of 1 on [0, 1]",
    "ssim": "structural similarity of 8-bit RGB images with a Gaussian window of sigma 1.5 and a data range of 255",
    "lpips": "learned perceptual image patch similarity: differences of unit-length feature vectors, at the images' own size",
}


def psnr(a: Images, b: Images, device: torch.device | str = "cpu") -> NDArray[np.float64]:
    """Peak signal-to-noise ratio of each pair in dB, (batch,): infinite where both are equal."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    one, two = _pixels(a, device), _pixels(b, device)
    value = peak_signal_noise_ratio(one, two, data_range=255.0, reduction="none", dim=(1, 2, 3))
    return np.asarray(value.cpu().numpy())


def ssim(a: Images, b: Images, device: torch.device | str = "cpu") -> NDArray[np.float64]:
    """Structural similarity of each pair, (batch,): 1 where both are equal.

    As torchmetrics computes it, whose convolution in two dimensions takes a hundred times as long in float64, and whose float32
    is off by 2e-4 on bright images.

    Raises:
        UsageError: images of fewer than 11 pixels on a side, the size of the window.
    """
    if min(a.shape[1:3]) < len(SSIM_WINDOW):
        raise UsageError(f"ssim of images of {a.shape[2]} x {a.shape[1]} pixels; allowed: 11 or more on each side")
    return np.array([_ssim(*(_pixels(one[None], device)[0] for one in pair)) for pair in zip(a, b, strict=True)])


def _ssim(x: Tensor, y: Tensor) -> float:
    """Structural similarity of two images (3, height, width): mean over channels and windows; edges are reflected."""
    edge = len(SSIM_WINDOW) // 2
    x, y = (nn.functional.pad(image, [edge] * 4, mode="reflect") for image in (x, y))
    mean_x, mean_y, xx, yy, xy = _windowed(torch.stack([x, y, x * x, y * y, x * y]))
    squares, product = mean_x.square() + mean_y.square(), mean_x * mean_y
    variances = (xx - mean_x.square()).clamp_(min=0) + (yy - mean_y.square()).clamp_(min=0)
    index = (2 * product + SSIM_C1) * (2 * (xy - product) + SSIM_C2) / ((squares + SSIM_C1) * (variances + SSIM_C2))
    return float(index.mean())


def _windowed(x: Tensor) -> Tensor:
    """Weighted means over windows, rows first, then columns."""
    for dim in (-1, -2):
        size = x.shape[dim] - len(SSIM_WINDOW) + 1
        total = x.narrow(dim, 0, size) * SSIM_WINDOW[0]
        for place, weight in enumerate(SSIM_WINDOW[1:], 1):
            total.add_(x.narrow(dim, place, size), alpha=weight)
        x = total
    return x


class Lpips(nn.Module):
    """LPIPS on the feature maps of a backbone.

    Args:
        features: backbone: images in [-1, 1] to its feature maps.
        weights: weight of each channel, (channels,) for each map; None weighs all channels 1, as LPIPS does without its
            learned layers.
    """

    def __init__(self, features: FeatureMaps, weights: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self.features = features
        self.weights = nn.ParameterList([nn.Parameter(w, requires_grad=False) for w in weights]) if weights else None
        self.register_buffer("anchor", torch.zeros(()), persistent=False)

    @torch.inference_mode()
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance of each pair of images (batch, 3, height, width) in [-1, 1]: (batch,)."""
        total = torch.zeros(len(a), device=a.device)
        for layer, (one, two) in enumerate(zip(self.features(a), self.features(b), strict=True)):
            difference = (_unit_length(one) - _unit_length(two)).square()
            weight = self.weights[layer][None, :, None, None] if self.weights is not None else 1.0
            total = total + (difference * weight).sum(dim=1).mean(dim=(1, 2))
        return total


def lpips(network: Lpips, a: Images, b: Images) -> NDArray[np.float64]:
    """LPIPS of each pair, (batch,): 0 where both are equal."""
    device = network.anchor.device
    assert isinstance(device, torch.device)
    one, two = (_pixels(images, device).float() / 127.5 - 1 for images in (a, b))
    return np.asarray(network(one, two).double().cpu().numpy())


def load_lpips(path: str | os.PathLike[str], backbone: LpipsBackbone = "alex", device: str = "cpu") -> Lpips:
    """LPIPS with its published linear layers, which torchmetrics carries, on a backbone from a file.

    Args:
        path: torchvision's weights of AlexNet, VGG16 or SqueezeNet 1.1 (.pth or .safetensors).
        backbone: which of the three.
        device: device of the network.

    Raises:
        UsageError: the backbone is unknown, or the file is missing or does not hold its weights.
    """
    require_choice("backbone", backbone, get_args(LpipsBackbone))
    features = LpipsFeatures(backbone)
    weights, allowed = _read_weights(path), f"torchvision's weights of LPIPS's backbone {backbone!r}"
    for name, value in features.state_dict().items():
        found = weights.get(name)
        if not isinstance(found, Tensor) or found.shape != value.shape:
            raise UsageError(f"{os.fspath(path)} lacks {name!r} of shape {tuple(value.shape)}; allowed: {allowed}")
    features.load_state_dict(weights, strict=False)
    return Lpips(features.eval(), linear_layers(backbone)).to(device).eval()


def linear_layers(backbone: LpipsBackbone) -> list[Tensor]:
    """The published weights of LPIPS's channels, one tensor for each feature map."""
    import torchmetrics.functional.image.lpips as reference

    file = Path(reference.__file__).parent / "lpips_models" / f"{backbone}.pth"
    state = torch.load(file, map_location="cpu", weights_only=True)
    return [value.reshape(-1).float() for _, value in sorted(state.items())]


class LpipsFeatures(nn.Module):
    """The layers of AlexNet, VGG16 or SqueezeNet 1.1 that LPIPS reads, under torchvision's names of their weights."""

    shift: Tensor
    scale: Tensor

    def __init__(self, backbone: LpipsBackbone) -> None:
        super().__init__()
        self.features, self.ends = {"alex": _alexnet, "vgg": _vgg16, "squeeze": _squeezenet}[backbone]()
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[None, :, None, None], persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images in [-1, 1] to the feature maps of LPIPS."""
        maps, x = [], (images - self.shift) / self.scale
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.ends:
                maps.append(x)
        return maps


class _Fire(nn.Module):
    """SqueezeNet's block."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.squeeze(x))
        return torch.cat([torch.relu(self.expand1x1(x)), torch.relu(self.expand3x3(x))], dim=1)


def _alexnet() -> tuple[nn.Sequential, tuple[int, ...]]:
    layers = [nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    layers += [nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    for inputs, outputs in ((192, 384), (384, 256), (256, 256)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers), (1, 4, 7, 9, 11)


def _vgg16() -> tuple[nn.Sequential, tuple[int, ...]]:
    layers: list[nn.Module] = []
    inputs, ends = 3, []
    for channels, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        if layers:
            layers.append(nn.MaxPool2d(2, 2))
        for _ in range(convolutions):
            layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.ReLU()]
            inputs = channels
        ends.append(len(layers) - 1)
    return nn.Sequential(*layers), tuple(ends)


def _squeezenet() -> tuple[nn.Sequential, tuple[int, ...]]:
    pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    layers = [nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), pool, _Fire(64, 16, 64), _Fire(128, 16, 64), pool]
    layers += [_Fire(128, 32, 128), _Fire(256, 32, 128), pool]
    layers += [_Fire(256, 48, 192), _Fire(384, 48, 192), _Fire(384, 64, 256), _Fire(512, 64, 256)]
    return nn.Sequential(*layers), (1, 4, 7, 9, 10, 11, 12)


def _read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    name = os.fspath(path)
    if not os.path.isfile(name):
        raise UsageError(f"LPIPS's backbone is {name!r}, no file; allowed: torchvision's weights, .pth or .safetensors")
    try:
        if name.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(name)
        state = torch.load(name, map_location="cpu", weights_only=True)
        assert isinstance(state, dict)
        return state
    except Exception as error:  # readers of damaged files raise any type
        raise UsageError(
            f"LPIPS's backbone {name} can't be read: {type(error).__name__}; allowed: torchvision's weights"
        ) from error


def _unit_length(maps: Tensor) -> Tensor:
    return maps / torch.sqrt(1e-8 + maps.square().sum(dim=1, keepdim=True))


def _pixels(images: Images, device: torch.device | str) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).double()
