"""The files of a local model in Diffusers' format: exactly those that are loaded, checked before anything is.

Weights come as safetensors, and nothing brings code of its own.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
import transformers

from hybridiff.errors import UsageError
from hybridiff.models.model_parts import Part, read_json, refuse
from hybridiff.models.weight_files import Header, check_tensors, read_header

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
MAX_TOKENS = 1_000_000  # of a tokenizer's window, to which prompts are padded
UNBOUNDED = 1e29  # what transformers saves for a tokenizer without a window is larger
QUANTIZERS = {"bitsandbytes": "bitsandbytes", "gguf": "gguf", "torchao": "torchao", "quanto": "optimum", "modelopt": "modelopt"}
CODE_FIELDS = ("auto_map", "custom_pipelines", "trust_remote_code", "use_kernels")  # of a configuration, at any depth


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
            _check_fields(path, parsed, name)
            if file.name == "tokenizer_config.json":
                _check_window(path, parsed.get("model_max_length"), name)
    networks: dict[str, Any] = {}
    for part in parts:
        if part.has_weights:
            tensors: dict[str, Header] = {}
            for name, file in files.items():
                if name.startswith(f"{part.name}/") and file.suffix == ".safetensors":
                    tensors |= read_header(path, file, name)
            networks[part.name] = check_tensors(path, files[f"{part.name}/config.json"].parent, part, tensors)
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
    names = dict.fromkeys([*getattr(part.kind, "vocab_files_names", {}).values(), "tokenizer.json", "tokenizer_config.json"])
    there = [name for name in names if (folder / name).is_file()] or list(names)
    read = ", ".join(f"{part.name}/{name}" for name in there)
    try:
        tokenizer = part.kind.from_pretrained(str(folder))
        words = len(tokenizer) - len(set(tokenizer.all_special_ids))
        vocabulary, added = tokenizer.get_vocab(), tokenizer.get_added_vocab()
        around = [*tokenizer("").input_ids, *([] if tokenizer.pad_token_id is None else [tokenizer.pad_token_id])]
        largest = max([*(number for token, number in vocabulary.items() if token not in added), *around], default=-1)
    except Exception as error:  # a class may raise anything on damaged files
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise refuse(path, f"a model whose {part.name} is a {part.kind.__name__} by {read} ({reason})") from error
    if words < 1:
        raise refuse(path, f"a model with all its files; {part.name} has no vocabulary for {part.kind.__name__} in {read}")
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
            parsed = read_json(path, file, shown, mapping=file.name.endswith("config.json"))
            _check_code(path, parsed, shown)
            _check_fields(path, parsed, shown)
            if ".safetensors.index" in file.name:
                _of_index(path, file, part)


def _check_fields(path: str, parsed: Any, shown: str) -> None:
    """Refuses a scheduler that would be made of defaults alone, and quantized weights whose package is not installed."""
    file = shown.rpartition("/")[2]
    if file == "scheduler_config.json" and not isinstance(parsed.get("_class_name"), str):
        raise refuse(path, f"a model whose {shown} names a class as _class_name")
    if file == "config.json" and parsed.get("quantization_config"):
        given = parsed["quantization_config"]
        method = given.get("quant_method") if isinstance(given, dict) else None
        package = QUANTIZERS.get(str(method))
        if method is None or (package is not None and find_spec(package) is None):
            allowed = f"weights that are not quantized, or by a package that is installed; {shown} asks for {package or given}"
            raise refuse(path, allowed)


def _check_code(path: str, value: Any, shown: str) -> None:
    if isinstance(value, list):
        for one in value:
            _check_code(path, one, shown)
    if not isinstance(value, dict):
        return
    for name, one in value.items():
        kernel = "_implementation" in name and "/" in str(one)  # of attention or of experts
        if kernel or (name in CODE_FIELDS and one):
            raise refuse(path, f"a model that brings no code ({shown}: {name} is {one!r})")
        _check_code(path, one, shown)
