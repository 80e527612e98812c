"""Weights as safetensors: their headers, and whether they are those of the network that a part's configuration describes."""

import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import safe_open
from torch.nn.modules.module import register_module_module_registration_hook
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from hybridiff.models.model_parts import Part, read_json, refuse

MAX_HEADER = 100_000_000  # bytes, as the safetensors library has it
MAX_MODULES = 50_000  # of a network; the largest published ones have a few thousand
_BLOCK = re.compile(r"blocks\.\d+\.")


@dataclass(frozen=True)
class Header:
    """What the header of a safetensors file says of a tensor.

    Args:
        shape: its sizes.
        dtype: name of its type, such as F16, BF16 or I64.
    """

    shape: tuple[int, ...]
    dtype: str


def read_header(path: str, file: Path, shown: str) -> dict[str, Header]:
    """The tensors of a safetensors file by name, as its header has them; the file must be as long as that says.

    Raises:
        UsageError: it is damaged.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER, size - 8):
                raise ValueError("its header is damaged")
            header = json.loads(opened.read(length))
        tensors = {name: one for name, one in header.items() if name != "__metadata__"}
        ends = [int(one["data_offsets"][1]) for one in tensors.values()]
        found = {name: Header(tuple(map(int, one["shape"])), str(one["dtype"])) for name, one in tensors.items()}
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise refuse(path, f"weights as safetensors; {shown} is damaged ({type(error).__name__})") from error
    if 8 + length + max(ends, default=0) != size:
        raise refuse(path, f"whole weights; {shown} has {size} bytes and its header says {8 + length + max(ends, default=0)}")
    try:
        with safe_open(file, "pt"):  # the library's own checks, of dtypes and of offsets that overlap or leave gaps
            return found
    except Exception as error:
        raise refuse(path, f"weights as safetensors; {shown} is damaged ({' '.join(str(error).split())[:200]})") from error


def check_tensors(path: str, folder: Path, part: Part, tensors: dict[str, Header]) -> Any:
    """Compares the weights with what the configuration says; those that transformers makes of others are not compared.

    Returns:
        The network without its weights.
    """
    try:
        network = network_on_meta(folder, part.kind)
    except Exception as error:  # a class may raise anything on a configuration
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise refuse(path, f"a model whose {part.name}/config.json fits {part.kind.__name__} ({reason})") from error
    if read_json(path, folder / "config.json", f"{part.name}/config.json").get("quantization_config"):
        return network  # its weights are packed, in a way of each method
    values = network.state_dict()
    expected = {name: tuple(value.shape) for name, value in values.items()}
    made = False
    if part.library == "diffusers":
        network._fix_state_dict_keys_on_load(tensors)  # attention had other names in Stable Diffusion 1's time
    else:
        tensors, made = _as_loaded(network, tensors, expected)
    for name in sorted(expected.keys() & tensors.keys()):
        shape = tensors[name].shape
        if expected[name] != shape and math.prod(expected[name]) + math.prod(shape) > 0:
            differ = f"{name} is {_shape(shape)} there, {_shape(expected[name])} by its config.json"
            raise refuse(path, f"weights that fit; {part.name}: {differ}")
        if values[name].is_floating_point() and "F" not in tensors[name].dtype:
            raise refuse(path, f"weights of floating-point numbers; {part.name}: {name} is of type {tensors[name].dtype}")
    if part.library == "diffusers" and (
        extra := [name for name in sorted(tensors.keys() - expected.keys()) if _BLOCK.search(name)]
    ):
        raise refuse(path, f"weights that fit; {part.name}: {extra[0]} is of a block that its config.json does not have")
    missing = sorted(expected.keys() - tensors.keys())
    if part.library != "diffusers" and not made and tensors and tensors.keys() <= expected.keys():
        missing = _made_up(network, missing)
    elif part.library != "diffusers" and len(missing) < len(expected):
        missing = []
    if missing:
        raise refuse(path, f"whole weights; {part.name} lacks {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}")
    return network


def network_on_meta(folder: Path, kind: Any) -> Any:
    """A network of a model without its weights.

    Args:
        folder: directory that holds its config.json.
        kind: its class.

    Raises:
        ValueError: its configuration asks for more modules than any network has, which would take hours to make.
    """
    made = itertools.count(1)

    def count(*_: Any) -> None:
        if next(made) > MAX_MODULES:
            raise ValueError(f"more than {MAX_MODULES} layers")

    with torch.device("meta"), _each_module(count):
        if issubclass(kind, diffusers.ModelMixin):
            return kind.from_config(kind.load_config(str(folder)))
        return kind(kind.config_class.from_pretrained(str(folder)))


@contextmanager
def _each_module(call: Callable[..., None]) -> Iterator[None]:
    """Within it, a function is called for each module that becomes a part of another one."""
    hook = register_module_module_registration_hook(call)
    try:
        yield
    finally:
        hook.remove()


def _as_loaded(network: Any, tensors: dict[str, Header], expected: dict[str, tuple[int, ...]]) -> tuple[dict[str, Header], bool]:
    """Weights by the names under which transformers loads them, and whether it makes some weights of others.

    Published files have the names of the versions that wrote them: CLIP's encoders had one prefix more, for instance.
    """
    conversions = get_model_conversion_mapping(network)
    renamings = [one for one in conversions if isinstance(one, WeightRenaming)]
    converters = [one for one in conversions if isinstance(one, WeightConverter)]
    renamed: dict[str, Header] = {}
    made = False
    for name in sorted(tensors):
        new, converted = rename_source_key(name, renamings, converters, network.base_model_prefix, expected)
        if new not in expected and name in expected:
            new, converted = name, None
        made |= converted is not None
        if converted is None:
            renamed[new] = tensors[name]
    return renamed, made


def _made_up(network: Any, missing: list[str]) -> list[str]:
    """Of the names that no weight has, those that transformers would fill at random: no buffers, and nothing that is tied."""
    pairs: dict[str, str] = getattr(network, "all_tied_weights_keys", None) or {}
    tied = pairs.keys() | {source for target, source in pairs.items() if target not in missing}  # a file has either one
    ignored = [re.compile(pattern) for pattern in getattr(network, "_keys_to_ignore_on_load_missing", None) or ()]
    parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    return [
        name
        for name in missing
        if name in parameters and name not in tied and not any(pattern.search(name) for pattern in ignored)
    ]


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a number"
