"""LoRA weights: files of safetensors, found before a model is loaded."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusers.utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
    is_peft_available,
)

from hybridiff.config import ModelConfig
from hybridiff.errors import UsageError, require
from hybridiff.models.hub_files import hub_file

_WEIGHT = re.compile(r"(?P<layer>.+)\.lora_(?:(?P<side>[AB])(?:\.\w+)?\.weight|B\.bias|magnitude_vector.*)")
USUAL_NAME = "pytorch_lora_weights.safetensors"
ALLOWED = (
    f"a .safetensors file, a directory that holds {USUAL_NAME} or one such file alone, or on the hub owner/name "
    f"(its {USUAL_NAME}) or owner/name/file.safetensors"
)


@dataclass(frozen=True)
class Lora:
    """LoRA weights.

    Args:
        path: local path of the file.
        pin: its hub id, commit and name; None if it did not come from the hub.
        scale: factor of what they add.
    """

    path: Path
    pin: str | None
    scale: float = 1.0


def find_lora(model: ModelConfig) -> tuple[Lora, ...]:
    """The files of LoRA weights, those of the hub downloaded.

    Raises:
        UsageError: peft is not installed, or there are none; pickles, as .bin and .pt files are, are none.
        StorageError: the hub did not answer.
    """
    allowed = "none, as peft is not installed (pip install 'hybridiff[lora]')"
    require(not model.lora or is_peft_available(), "model.lora", [one.path for one in model.loras], allowed)
    return tuple(replace(_find(one.path), scale=one.scale) for one in model.loras)


def check_lora(given: str, lora: Lora, pipeline: Any, networks: Mapping[str, Any], denoiser: str) -> None:
    """Refuses LoRA weights of which nothing or not all lands in the model.

    Args:
        given: file or hub id as the user gives it.
        lora: weights.
        pipeline: class of the model's pipeline, which translates names of other programs.
        networks: parts of the model that may be adapted, by name, without weights.
        denoiser: name of the unet or transformer among them.

    Raises:
        UsageError: names the weights that do not land, or what is wrong with the file.
    """
    options = {"unet_config": networks[denoiser].config} if denoiser == "unet" else {}
    try:
        found = pipeline.lora_state_dict(str(lora.path), use_safetensors=True, **options)
    except Exception as error:  # a translation may raise anything on a damaged file or on unknown names
        raise _refuse(given, f"it is none for this model: {' '.join(str(error).split())[:200]}") from error
    weights: dict[str, Any] = found[0] if isinstance(found, tuple) else found
    lost = sorted(name for name in weights if not name.startswith(tuple(f"{part}." for part in networks)))
    layers: dict[str, dict[str, Any]] = {}  # of each layer, its matrices A and B
    for part, network in networks.items():
        own = {name.removeprefix(f"{part}."): value for name, value in weights.items() if name.startswith(f"{part}.")}
        own = _as_peft(own, part == denoiser)
        lost += [f"{part}.{name}" for name in _not_landing(own, network)]
        for name, value in own.items():
            if (matched := _WEIGHT.fullmatch(name)) and matched["side"]:
                layers.setdefault(f"{part}.{matched['layer']}", {})[matched["side"]] = value
    if not weights:
        raise _refuse(given, "it has no LoRA weights")
    if lost:
        shown = f"{', '.join(lost[:3])}{' ...' if len(lost) > 3 else ''}"
        raise _refuse(given, f"{len(lost)} of its {len(weights)} weights have no place in the model: {shown}")
    if halves := sorted(
        f"{layer}.lora_{'A' if 'B' in matrices else 'B'}" for layer, matrices in layers.items() if len(matrices) < 2
    ):
        raise _refuse(given, f"it lacks weights: {', '.join(halves[:3])}{' ...' if len(halves) > 3 else ''}")
    for layer, matrices in sorted(layers.items()):
        for side, value in sorted(matrices.items()):
            if not value.is_floating_point() or not value.isfinite().all():
                raise _refuse(given, f"{layer}.lora_{side} is {str(value.dtype).removeprefix('torch.')}, or not finite")
    if not any(matrices["A"].any() and matrices["B"].any() for matrices in layers.values()):
        raise _refuse(given, "its weights are 0, so that they change nothing")


def _as_peft(weights: dict[str, Any], of_denoiser: bool) -> dict[str, Any]:
    """Weights by the names that loading gives them."""
    if not weights or any("lora_A" in name for name in weights):
        return weights
    if of_denoiser:
        return dict(convert_unet_state_dict_to_peft(weights))
    return dict(convert_state_dict_to_peft(convert_state_dict_to_diffusers(weights)))


def _not_landing(weights: dict[str, Any], network: Any) -> list[str]:
    """Names of LoRA weights for which a network has no layer, or one of another size."""
    layers = dict(network.named_modules())
    lost = []
    for name, value in weights.items():
        matched = _WEIGHT.fullmatch(name)
        layer = getattr(layers.get(matched["layer"]), "weight", None) if matched else None
        if matched is None or layer is None:
            lost.append(name)
        elif matched["side"] is not None:
            axis = int(matched["side"] == "A")  # A reads the layer's inputs, B writes its outputs
            if value.shape[axis] != layer.shape[axis]:
                lost.append(name)
    return sorted(lost)


def _find(given: str) -> Lora:
    local = Path(os.path.expanduser(given))
    if local.is_dir():
        found = sorted(path for path in local.iterdir() if path.suffix == ".safetensors" and path.is_file())
        usual = [path for path in found if path.name == USUAL_NAME] or found
        if len(usual) != 1:
            raise _refuse(given, f"it holds {len(usual)} .safetensors files")
        return Lora(usual[0], None)
    if local.exists():
        if local.suffix != ".safetensors":
            raise _refuse(given, "it is another file")
        return Lora(local, None)
    return _download(given)


def _download(given: str) -> Lora:
    owner, _, rest = given.partition("/")
    name, _, file = rest.partition("/")
    file = file or USUAL_NAME
    if not owner or not name or not file.endswith(".safetensors"):
        raise _refuse(given, "there is no such file")
    path = hub_file("model.lora", f"{owner}/{name}", file, ALLOWED)
    commit = path.parents[len(Path(file).parts) - 1].name
    return Lora(path, f"{owner}/{name}@{commit}/{file}")


def _refuse(given: str, reason: str) -> UsageError:
    return UsageError(f"model.lora has {given!r}; allowed: {ALLOWED} ({reason})")
