"""Extractors, loaded: networks in float32 on a rank's device, batches of images in, feature vectors out."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hybridiff.errors import UsageError
from hybridiff.evaluate.metrics.pairs import Images, Lpips, load_lpips, lpips
from hybridiff.evaluate.networks.extractors import Extractor
from hybridiff.evaluate.networks.preprocessing import preprocessing_of
from hybridiff.evaluate.shard_images import Pixels
from hybridiff.secrets import one_line

Vectors = NDArray[np.float32]  # (images, width)


class Network:
    """An extractor on a device.

    Args:
        extractor: what it is, with its files.
        device: device of the rank.

    Raises:
        UsageError: its files are not what they should be.
    """

    def __init__(self, extractor: Extractor, device: torch.device) -> None:
        self._extractor, self._device = extractor, device
        self._preprocess = preprocessing_of(extractor)
        load: dict[str | None, Callable[[], Callable[[Tensor], Any]]] = {
            "transformers": self._transformers,
            "torchscript": self._torchscript,
            "onnx": self._onnx,
        }
        self.model: Any = None
        self._call = _loading(extractor, load[extractor.kind])

    @torch.inference_mode()
    def __call__(self, images: Sequence[Pixels]) -> Vectors:
        """The feature vector of each image.

        Raises:
            UsageError: the network does not take its input, or gives no vectors.
        """
        inputs = torch.from_numpy(np.stack([self._preprocess(image) for image in images]))
        try:
            output = self._call(inputs)
            vectors = _first(output).flatten(1).float().cpu().numpy()
        except Exception as error:  # of the network's own code
            raise UsageError(self._failed(error)) from error
        if len(vectors) != len(images):
            raise UsageError(self._failed(ValueError(f"{len(vectors)} vectors for {len(images)} images")))
        if not np.isfinite(vectors).all():
            raise UsageError(self._failed(ValueError("NaN or infinite values")))
        return np.asarray(vectors)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Vectors:
        """The embedding of each text, by a network that has a text encoder.

        Raises:
            UsageError: it has none.
        """
        try:
            window = self.model.config.text_config.max_position_embeddings
            tokens = self._tokenizer(list(texts), padding="max_length", truncation=True, max_length=window, return_tensors="pt")
            taken = {name: tokens[name].to(self._device) for name in ("input_ids", "attention_mask") if name in tokens}
            return np.asarray(_first(self.model.get_text_features(**taken)).float().cpu().numpy())
        except Exception as error:  # of the network's own code
            raise UsageError(self._failed(error)) from error

    def _failed(self, error: Exception) -> str:
        one = self._extractor
        hint = "a smaller --batch_size" if isinstance(error, torch.cuda.OutOfMemoryError) else "a network that takes images so"
        return (
            f"the extractor {one.name!r} ({one.path}, preprocessing {one.preprocessing}) failed on images ({one_line(error)}); "
            f"allowed: {hint}"
        )

    def _transformers(self) -> Callable[[Tensor], Any]:
        import transformers

        transformers.utils.logging.disable_progress_bar()
        path = self._extractor.path
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}  # no code of the directory's own
        model = transformers.AutoModel.from_pretrained(path, use_safetensors=True, dtype=torch.float32, **local)
        self.model = model.to(self._device).eval()
        if not hasattr(self.model, "get_image_features"):
            return lambda inputs: self.model(pixel_values=inputs.to(self._device))
        if hasattr(self.model, "get_text_features"):
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(path, **local)
        return lambda inputs: self.model.get_image_features(pixel_values=inputs.to(self._device))

    def _torchscript(self) -> Callable[[Tensor], Any]:
        loaded = torch.jit.load(self._extractor.path, map_location=self._device).eval()
        name = self._extractor.submodule
        self.model = getattr(loaded, name, loaded) if name else loaded
        return lambda inputs: self.model(inputs.to(self._device))

    def _onnx(self) -> Callable[[Tensor], Any]:
        import onnxruntime

        there = onnxruntime.get_available_providers()
        wanted = ["CUDAExecutionProvider"] if self._device.type == "cuda" else []
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors alone
        providers = [one for one in (*wanted, "CPUExecutionProvider") if one in there]
        session = onnxruntime.InferenceSession(self._extractor.path, options, providers=providers)
        name = session.get_inputs()[0].name
        return lambda inputs: torch.from_numpy(np.asarray(session.run(None, {name: inputs.numpy()})[0]))


class Head:
    """Linear layers on embeddings, from a file of their weights.

    Args:
        extractor: the file.
        device: device of the rank.

    Raises:
        UsageError: the file holds something else.
    """

    def __init__(self, extractor: Extractor, device: torch.device) -> None:
        self._name, self._path = extractor.name, extractor.path
        self._layers = _loading(
            extractor, lambda: [(w.to(device), b.to(device)) for w, b in _linear_layers(Path(extractor.path))]
        )

    @torch.inference_mode()
    def __call__(self, vectors: Vectors) -> Tensor:
        """One number for each embedding, which is scaled to unit length."""
        values = torch.from_numpy(vectors).to(self._layers[0][0].device)
        values = values / values.norm(dim=1, keepdim=True).clamp_min(1e-12)
        if values.shape[1] != self._layers[0][0].shape[1]:
            raise UsageError(
                f"the extractor {self._name!r} ({self._path}) takes embeddings of {self._layers[0][0].shape[1]} values, and clip "
                f"gives {values.shape[1]}; allowed: the CLIP that the head was trained on"
            )
        for weight, bias in self._layers:
            values = values @ weight.T + bias
        return values[:, 0]


def load_distance(extractor: Extractor, device: torch.device) -> Callable[[Images, Images], NDArray[np.float64]]:
    """LPIPS on the backbone of an extractor.

    Torchvision's weights get LPIPS's own linear layers. A TorchScript file that maps images in [-1, 1] to a list of feature maps,
    and the hidden states of a directory of transformers, weigh all channels alike.

    Raises:
        UsageError: its files are not what they should be.
    """

    def load() -> Lpips:
        if extractor.kind == "torchvision":
            return load_lpips(extractor.path, extractor.backbone or "alex", str(device))  # type: ignore[arg-type]
        if extractor.kind == "torchscript":
            return Lpips(torch.jit.load(extractor.path, map_location=device).eval()).to(device)
        if extractor.kind == "transformers":
            return Lpips(_HiddenStates(Network(extractor, device))).to(device)
        raise UsageError(f"the extractor 'lpips' is of kind {extractor.kind}; allowed: torchvision, torchscript, transformers")

    network = _loading(extractor, load)

    def distance(a: Images, b: Images) -> NDArray[np.float64]:
        try:
            return lpips(network, a, b)
        except Exception as error:  # of the network's own code
            raise UsageError(f"the extractor 'lpips' ({extractor.path}) failed on images ({one_line(error)})") from error

    return distance


class _HiddenStates:
    """The hidden states of a vision transformer as feature maps of images in [-1, 1]."""

    def __init__(self, network: Network) -> None:
        config = getattr(network.model.config, "vision_config", network.model.config)
        self._model, self._size = getattr(network.model, "vision_model", network.model), int(config.image_size)

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Maps (batch, channels, tokens, 1) of each layer."""
        size = (self._size, self._size)
        resized = nn.functional.interpolate(images, size, mode="bicubic", antialias=True)
        states = self._model(pixel_values=resized, output_hidden_states=True).hidden_states
        return [state.transpose(1, 2)[..., None] for state in states]


def _loading(extractor: Extractor, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except UsageError:
        raise
    except Exception as error:  # readers of damaged files raise any type
        raise UsageError(
            f"the extractor {extractor.name!r} can't be loaded from {extractor.path} as {extractor.kind} ({one_line(error)}); "
            "allowed: whole files of that kind"
        ) from error


def _first(output: Any) -> Tensor:
    """The vectors in a network's output: pooled, embedded, or its first tensor."""
    for name in ("pooler_output", "image_embeds", "last_hidden_state"):
        if (found := getattr(output, name, None)) is not None:
            return found[:, 0] if name == "last_hidden_state" else found
    while not isinstance(output, Tensor):
        output = next(iter(output.values() if isinstance(output, Mapping) else output))
    return output


def _linear_layers(path: Path) -> list[tuple[Tensor, Tensor]]:
    """Weights and biases of layers in the order of their numbers."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    names = [name.removesuffix("weight") for name in state if name.endswith("weight")]
    names.sort(key=lambda name: [int(part) for part in name.split(".") if part.isdigit()])
    layers = [(state[f"{name}weight"].float(), state[f"{name}bias"].float()) for name in names]
    if not layers or any(weight.ndim != 2 for weight, _ in layers):
        raise ValueError("no weights and biases of linear layers")
    return layers
