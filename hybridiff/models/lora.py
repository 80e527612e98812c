"""LoRA weights: files of safetensors, found before a model is loaded."""

from dataclasses import dataclass
from pathlib import Path

from diffusers.utils import is_peft_available
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from hybridiff.config import ModelConfig
from hybridiff.errors import UsageError, require

HUB_ERRORS = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError)
USUAL_NAME = "pytorch_lora_weights.safetensors"
ALLOWED = (
    f"a .safetensors file, a directory that holds {USUAL_NAME} or one such file alone, or on the hub owner/name "
    f"(its {USUAL_NAME}) or owner/name/file.safetensors"
)


@dataclass(frozen=True)
class Lora:
    """LoRA weights.

    Args:
        path: Of the file, local.
        pin: Its hub id, commit and name; None if it did not come from the hub.
    """

    path: Path
    pin: str | None


def find_lora(model: ModelConfig) -> tuple[Lora, ...]:
    """The files of LoRA weights, those of the hub downloaded.

    Raises:
        UsageError: peft is not installed, or there are none; pickles, as .bin and .pt files are, are none.
    """
    allowed = "none, as peft is not installed (pip install 'hybridiff[lora]')"
    require(not model.lora or is_peft_available(), "model.lora", model.lora, allowed)
    return tuple(map(_find, model.lora))


def _find(given: str) -> Lora:
    local = Path(given)
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
    try:
        path = Path(hf_hub_download(f"{owner}/{name}", file))
    except HUB_ERRORS as error:
        raise _refuse(given, (str(error).strip() or type(error).__name__).splitlines()[0]) from error
    commit = path.parents[len(Path(file).parts) - 1].name
    return Lora(path, f"{owner}/{name}@{commit}/{file}")


def _refuse(given: str, reason: str) -> UsageError:
    return UsageError(f"model.lora has {given!r}; allowed: {ALLOWED} ({reason})")
