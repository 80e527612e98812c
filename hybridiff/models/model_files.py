"""The files of a local model in Diffusers' format: exactly those that are loaded, checked before anything is.

Weights come as safetensors, parts are classes of diffusers and transformers, and nothing brings code of its own.
"""

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
import transformers
from safetensors import safe_open
from torch.nn.modules.module import register_module_module_registration_hook
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from hybridiff.errors import UsageError, access_error
from hybridiff.models.schedulers import missing_packages

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
MAX_HEADER = 100_000_000  # bytes, as the safetensors library has it
MAX_JSON = 200_000_000  # bytes; the largest tokenizers have 35 MB
MAX_MODULES = 50_000  # of a network; the largest published ones have a few thousand
MAX_TOKENS = 1_000_000  # of a tokenizer's window, to which prompts are padded
UNBOUNDED = 1e29  # what transformers saves for a tokenizer without a window is larger
CODE_FIELDS = ("auto_map", "custom_pipelines", "trust_remote_code", "use_kernels")  # of a configuration, at any depth
LIBRARIES = {"diffusers": diffusers, "transformers": transformers}
_BLOCK = re.compile(r"blocks\.\d+\.")
BASES = {
    "diffusers": (
        diffusers.ModelMixin,
        diffusers.SchedulerMixin,
        diffusers.image_processor.VaeImageProcessor,
        diffusers.BaseGuidance,
    ),
    "transformers": (
        transformers.PreTrainedModel,
        transformers.PreTrainedTokenizerBase,
        transformers.ProcessorMixin,
        transformers.image_processing_base.ImageProcessingMixin,
        transformers.feature_extraction_utils.FeatureExtractionMixin,
    ),
}


@dataclass(frozen=True)
class Part:
    """One part of a model.

    Args:
        name: its name in the pipeline, and of its folder.
        library: diffusers or transformers.
        kind: its class.
    """

    name: str
    library: str
    kind: Any

    @property
    def has_weights(self) -> bool:
        """Whether it is a network."""
        return issubclass(self.kind, (diffusers.ModelMixin, transformers.PreTrainedModel))


def model_parts(path: str, index: dict[str, Any]) -> list[Part]:
    """The parts that a model's index names.

    Args:
        path: model as the user gives it, for messages.
        index: parsed model_index.json.

    Raises:
        UsageError: a part is code of the model's own, of another library, or needs a package that is not installed.
    """
    if not isinstance(index.get("_class_name"), str):
        raise refuse(path, f"a pipeline of diffusers, not code of its own ({index.get('_class_name')})")
    name = index["_class_name"]
    if missing := missing_packages(getattr(diffusers, name, None)):
        raise refuse(path, f"pipelines whose packages are installed; {name} needs {', '.join(missing)}")
    parts = []
    for name, value in index.items():
        if not isinstance(value, list) or value == [None, None]:
            continue
        if len(value) != 2 or not all(isinstance(one, str) for one in value) or "/" in name or name.startswith("."):
            raise refuse(path, f"parts of diffusers and transformers, not code of its own ({name} is {value})")
        parts.append(Part(name, *_library_and_class(path, name, *value)))
    return parts


def _library_and_class(path: str, name: str, library: str, kind: str) -> tuple[str, Any]:
    own = f"parts of diffusers and transformers, not code of its own ({name} is {[library, kind]})"
    home = LIBRARIES.get(library) or getattr(diffusers.pipelines, library, None)
    found = getattr(home, kind, None) if home is not None else None
    if not isinstance(found, type):
        raise refuse(path, own)
    if missing := missing_packages(found):
        raise refuse(path, f"parts whose packages are installed: {name}, a {kind}, needs {', '.join(missing)}")
    allowed = BASES.get(library, (*BASES["diffusers"], *BASES["transformers"]))
    if issubclass(found, diffusers.DiffusionPipeline) or not issubclass(found, allowed):
        raise refuse(path, own)
    return ("transformers" if issubclass(found, BASES["transformers"]) else "diffusers"), found


def loaded_files(path: str, root: Path, parts: list[Part], variant: str | None) -> dict[str, Path]:
    """The files that loading opens, by their names below the model's directory; links are followed.

    Raises:
        UsageError: a file is missing, or there are pickles only; names the part.
    """
    found = {"model_index.json": root / "model_index.json"}
    for part in parts:
        folder = root / part.name
        if not folder.is_dir():
            raise refuse(path, f"a model with all its parts; the directory {part.name} is missing")
        names: Iterator[str]
        if part.has_weights:
            names = iter(["config.json", *_weights(path, root, part, variant)])
            names = iter([*names, *(["generation_config.json"] if (folder / "generation_config.json").is_file() else [])])
        elif issubclass(part.kind, diffusers.SchedulerMixin):
            names = iter(["scheduler_config.json"])
        else:  # of tokenizers and processors each class reads other ones
            names = (
                one.name for one in sorted(folder.iterdir()) if one.is_file() and one.suffix not in (*PICKLES, ".safetensors")
            )
        for name in names:
            if not (folder / name).is_file():
                raise refuse(path, f"a model with all its files; {part.name}/{name} is missing")
            found[f"{part.name}/{name}"] = folder / name
    if variant is not None and not any(f".{variant}." in name for name in found):
        raise UsageError(f"model.variant is {variant!r}; allowed: none, as {path} has no weights of that variant")
    return found


def _weights(path: str, root: Path, part: Part, variant: str | None) -> list[str]:
    """Names of the weight files of a part, their index first; of the variant where the part has it, as in diffusers."""
    folder, stem = root / part.name, STEMS[part.library]
    for ending in [f".{variant}", ""] if variant else [""]:
        single, several = f"{stem}{ending}.safetensors", f"{stem}.safetensors.index{ending}.json"
        order = (several, single) if part.library == "diffusers" else (single, several)
        for name in order:
            if (folder / name).is_file():
                return [name] if name == single else [name, *_of_index(path, folder / name, part)]
    others = sorted(one.name for one in folder.iterdir() if one.suffix == ".safetensors")
    pickles = sorted(one.name for one in folder.iterdir() if one.suffix in PICKLES)
    if pickles and not others:
        raise refuse(path, f"weights as safetensors ({part.name} has only {', '.join(pickles[:3])})")
    if others:
        variants = sorted({one.split(".")[1] for one in others if one.count(".") == 2})
        hint = f"; model.variant may be {', '.join(variants)}" if variants else ""
        raise refuse(path, f"a model with {part.name}/{stem}.safetensors, which has {', '.join(others[:3])}{hint}")
    raise refuse(path, f"a model with all its files; {part.name}/{stem}.safetensors is missing")


def _of_index(path: str, file: Path, part: Part) -> list[str]:
    shown = f"{part.name}/{file.name}"
    weight_map = read_json(path, file, shown).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise refuse(path, f"a model whose {shown} has a weight_map")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if "/" in name or "\\" in name or not name.endswith(".safetensors"):
            raise refuse(path, f"weights as safetensors beside their index ({shown} names {name})")
    return names


def check_files(path: str, files: dict[str, Path], parts: list[Part]) -> None:
    """Refuses files that are damaged, do not fit together, or fetch code.

    Raises:
        UsageError: names the file.
    """
    for name, file in files.items():
        if file.suffix == ".json":
            parsed = read_json(path, file, name, mapping=name.count("/") == 0 or file.name.endswith("config.json"))
            _check_code(path, parsed, name)
            if file.name == "tokenizer_config.json":
                _check_window(path, parsed.get("model_max_length"), name)
    networks: dict[str, Any] = {}
    for part in parts:
        if part.has_weights:
            shapes: dict[str, tuple[int, ...]] = {}
            for name, file in files.items():
                if name.startswith(f"{part.name}/") and file.suffix == ".safetensors":
                    shapes |= read_header(path, file, name)
            networks[part.name] = _check_shapes(path, files[f"{part.name}/config.json"].parent, part, shapes)
    for part in parts:
        if issubclass(part.kind, transformers.PreTrainedTokenizerBase):
            encoder = part.name.replace("tokenizer", "text_encoder")
            _check_tokenizer(path, files["model_index.json"].parent / part.name, part, encoder, networks.get(encoder))


def _words_of(encoder: Any) -> int | None:
    """Number of tokens that a text encoder knows; None if it does not say."""
    try:
        return getattr(encoder.get_input_embeddings(), "num_embeddings", None)
    except (AttributeError, NotImplementedError):
        return None


def _check_tokenizer(path: str, folder: Path, part: Part, encoder: str, network: Any) -> None:
    """Loads a tokenizer: each class reads other files, and some make an empty one where theirs are missing.

    Its text encoder must know what it makes of any prompt. Tokens added for other uses, as those of images, may lie beyond.
    """
    try:
        tokenizer = part.kind.from_pretrained(str(folder))
        words = len(tokenizer) - len(set(tokenizer.all_special_ids))
        vocabulary, added = tokenizer.get_vocab(), tokenizer.get_added_vocab()
        around = [*tokenizer("").input_ids, *([] if tokenizer.pad_token_id is None else [tokenizer.pad_token_id])]
        largest = max([*(number for token, number in vocabulary.items() if token not in added), *around], default=-1)
    except Exception as error:  # a class may raise anything on damaged files
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise refuse(path, f"a model whose {part.name} is a {part.kind.__name__} ({reason})") from error
    if words < 1:
        raise refuse(path, f"a model with all its files; {part.name} has no vocabulary for {part.kind.__name__}")
    positions = getattr(getattr(network, "config", None), "max_position_embeddings", None)
    if issubclass(part.kind, transformers.CLIPTokenizer) and positions and tokenizer.model_max_length > positions:
        window = f"{part.name} pads to {tokenizer.model_max_length:g} tokens (tokenizer_config.json)"
        raise refuse(path, f"parts that fit; {window}, and {encoder} has {positions} positions")
    known = _words_of(network)
    if known is not None and largest >= known:
        raise refuse(path, f"parts that fit; {part.name} has a token {largest}, and {encoder} knows {known} of them")


def _check_window(path: str, given: Any, shown: str) -> None:
    number = isinstance(given, (int, float)) and not isinstance(given, bool)
    if given is not None and not (number and (1 <= given <= MAX_TOKENS or given > UNBOUNDED)):
        raise refuse(path, f"a model whose {shown} has a model_max_length of 1 to {MAX_TOKENS} tokens, not {given!r}")


def check_configurations(path: str, root: Path, parts: list[Part]) -> None:
    """Refuses a model whose configuration files are damaged, name weights that are not safetensors, or fetch code.

    Args:
        path: model as the user gives it, for messages.
        root: directory of the model, whose weights may not be there yet.
        parts: its parts.

    Raises:
        UsageError: names the file.
    """
    for part in parts:
        for file in sorted((root / part.name).glob("*.json")):
            shown = f"{part.name}/{file.name}"
            _check_code(path, read_json(path, file, shown, mapping=file.name.endswith("config.json")), shown)
            if ".safetensors.index" in file.name:
                _of_index(path, file, part)


def read_json(path: str, file: Path, shown: str, mapping: bool = True) -> Any:
    """A parsed JSON file.

    Raises:
        UsageError: it is none, or no mapping.
    """
    if file.exists() and (not file.is_file() or file.stat().st_size > MAX_JSON):  # a FIFO or device may never end
        raise refuse(path, f"a model whose {shown} is a regular file of at most {MAX_JSON // 10**6} MB")
    try:
        parsed = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise access_error(f"model.path is {path!r}: {shown} can't be read ({error.strerror})", error) from error
    except (ValueError, RecursionError) as error:
        raise refuse(path, f"a model whose {shown} is JSON ({' '.join(str(error).split())})") from error
    if mapping and not isinstance(parsed, dict):
        raise refuse(path, f"a model whose {shown} is a JSON object")
    return parsed


def _check_code(path: str, value: Any, shown: str) -> None:
    if isinstance(value, list):
        for one in value:
            _check_code(path, one, shown)
    if not isinstance(value, dict):
        return
    for name, one in value.items():
        kernel = name.endswith("attn_implementation") and "/" in str(one)
        if kernel or (name in CODE_FIELDS and one):
            raise refuse(path, f"a model that brings no code ({shown}: {name} is {one!r})")
        _check_code(path, one, shown)


def read_header(path: str, file: Path, shown: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a safetensors file by name, read from its header; the file must be as long as that says.

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
        shapes = {name: tuple(int(length) for length in one["shape"]) for name, one in tensors.items()}
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise refuse(path, f"weights as safetensors; {shown} is damaged ({type(error).__name__})") from error
    if 8 + length + max(ends, default=0) != size:
        raise refuse(path, f"whole weights; {shown} has {size} bytes and its header says {8 + length + max(ends, default=0)}")
    try:
        with safe_open(file, "pt"):  # the library's own checks, of dtypes and of offsets that overlap or leave gaps
            return shapes
    except Exception as error:
        raise refuse(path, f"weights as safetensors; {shown} is damaged ({' '.join(str(error).split())[:200]})") from error


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


def _check_shapes(path: str, folder: Path, part: Part, shapes: dict[str, tuple[int, ...]]) -> Any:
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
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    made = False
    if part.library == "diffusers":
        network._fix_state_dict_keys_on_load(shapes)  # attention had other names in Stable Diffusion 1's time
    else:
        shapes, made = _as_loaded(network, shapes, expected)
    for name in sorted(expected.keys() & shapes.keys()):
        if expected[name] != shapes[name] and math.prod(expected[name]) + math.prod(shapes[name]) > 0:
            differ = f"{name} is {_shape(shapes[name])} there, {_shape(expected[name])} by its config.json"
            raise refuse(path, f"weights that fit; {part.name}: {differ}")
    if part.library == "diffusers" and (
        extra := [name for name in sorted(shapes.keys() - expected.keys()) if _BLOCK.search(name)]
    ):
        raise refuse(path, f"weights that fit; {part.name}: {extra[0]} is of a block that its config.json does not have")
    missing = sorted(expected.keys() - shapes.keys())
    if part.library != "diffusers" and not made and shapes and shapes.keys() <= expected.keys():
        missing = _made_up(network, missing)
    elif part.library != "diffusers" and len(missing) < len(expected):
        missing = []
    if missing:
        raise refuse(path, f"whole weights; {part.name} lacks {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}")
    return network


def _as_loaded(
    network: Any, shapes: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]
) -> tuple[dict[str, tuple[int, ...]], bool]:
    """Shapes by the names under which transformers loads weights, and whether it makes some weights of others.

    Published files have the names of the versions that wrote them: CLIP's encoders had one prefix more, for instance.
    """
    conversions = get_model_conversion_mapping(network)
    renamings = [one for one in conversions if isinstance(one, WeightRenaming)]
    converters = [one for one in conversions if isinstance(one, WeightConverter)]
    renamed: dict[str, tuple[int, ...]] = {}
    made = False
    for name in sorted(shapes):
        new, converted = rename_source_key(name, renamings, converters, network.base_model_prefix, expected)
        if new not in expected and name in expected:
            new, converted = name, None
        made |= converted is not None
        if converted is None:
            renamed[new] = shapes[name]
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


def refuse(path: str, allowed: str) -> UsageError:
    """The error of a model that is not as it should be."""
    return UsageError(f"model.path is {path!r}; allowed: {allowed}")
