"""The parts of a local model in Diffusers' format: classes of diffusers and transformers, by the model's index."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import transformers

from hybridiff.errors import UsageError, access_error
from hybridiff.models.schedulers import missing_packages

MAX_JSON = 200_000_000  # bytes; the largest tokenizers have 35 MB
LIBRARIES = {"diffusers": diffusers, "transformers": transformers}
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
        raise refuse(
            path, f"a pipeline of diffusers, not code of its own (model_index.json: _class_name is {index.get('_class_name')})"
        )
    name = index["_class_name"]
    if missing := missing_packages(getattr(diffusers, name, None)):
        raise refuse(path, f"pipelines whose packages are installed; {name} needs {', '.join(missing)}")
    parts = []
    expected = _parts_of(getattr(diffusers, name, None))
    for name, value in index.items():
        if value == [None, None] or (not isinstance(value, list) and name not in expected):
            continue
        pair = isinstance(value, list) and len(value) == 2 and all(isinstance(one, str) for one in value)
        if not pair or "/" in name or name.startswith("."):
            raise refuse(path, f"parts of diffusers and transformers, not code of its own (model_index.json: {name} is {value})")
        parts.append(Part(name, *_library_and_class(path, name, *value)))
    return parts


def _parts_of(pipeline: Any) -> set[str]:
    """Names of the parts that a pipeline is made of."""
    known = isinstance(pipeline, type) and issubclass(pipeline, diffusers.DiffusionPipeline)
    return set(pipeline._get_signature_keys(pipeline)[0]) if known else set()


def _library_and_class(path: str, name: str, library: str, kind: str) -> tuple[str, Any]:
    own = f"parts of diffusers and transformers, not code of its own (model_index.json: {name} is {[library, kind]})"
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


def refuse(path: str, allowed: str) -> UsageError:
    """The error of a model that is not as it should be."""
    return UsageError(f"model.path is {path!r}; allowed: {allowed}")
