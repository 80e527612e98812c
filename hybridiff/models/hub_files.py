"""Files of the Hugging Face hub: downloads into its cache, and whose fault a failed one is, the user's or the hub's."""

import os
from importlib.resources import files
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from hybridiff.config import ModelConfig
from hybridiff.config.model import BUNDLED, PATHS
from hybridiff.errors import PASSING_STATUS, StorageError, UsageError, access_error, require

CONFIGURATION = ("*.json", "*.txt", "*.model")  # files of a model that hold no weights


def model_folder(model: ModelConfig) -> Path:
    """The directory of a model: a local one, or the configuration files of a hub model.

    Raises:
        UsageError: there is none.
        StorageError: the hub did not answer.
    """
    local = _local(model)
    if local.is_file():
        one_file = "a directory in Diffusers' format, not a single file; from_single_file and save_pretrained make one"
        raise UsageError(f"model.path is {model.path!r}; allowed: {one_file}")
    of_hub = f"none, as {model.path} is no model of the hub"
    require(model.revision is None or not local.is_dir(), "model.revision", model.revision, of_hub)
    return local if local.is_dir() else hub_folder("model.path", model.path, model.revision, PATHS)


def is_local(model: ModelConfig) -> bool:
    """Whether a model is a directory, bundled or the user's own."""
    return _local(model).is_dir()


def _local(model: ModelConfig) -> Path:
    if model.path in BUNDLED:
        return Path(str(files("hybridiff") / "assets" / model.path))
    return Path(os.path.expanduser(model.path))


def hub_folder(option: str, name: str, revision: str | None, allowed: str) -> Path:
    """The configuration files of a model, downloaded; the folder's name is the commit.

    Args:
        option: name of the option that gives the model.
        name: hub id.
        revision: branch, tag or commit; None for the default.
        allowed: what the option takes, for the message.

    Raises:
        UsageError: there is no such model, or downloads are switched off and it is not in the cache.
        StorageError: the hub did not answer.
    """
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(CONFIGURATION)))
    except Exception as error:  # the hub's client raises types of its own, and those of HTTP
        raise _hub_error(option, name, allowed, error) from error


def hub_file(option: str, name: str, file: str, allowed: str) -> Path:
    """One file of a model, downloaded; arguments and errors as in ``hub_folder``."""
    try:
        return Path(hf_hub_download(name, file))
    except Exception as error:
        raise _hub_error(option, name, allowed, error) from error


def _hub_error(option: str, name: str, allowed: str, error: Exception) -> UsageError | StorageError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if "/" not in name or is_mistake(error):  # a name alone is a misspelt bundled model rather than one of the hub's oldest
        return UsageError(f"{option} is {name!r}; allowed: {allowed} ({reason})")
    return StorageError(f"{option} is {name!r}: the hub did not give it ({reason})")


def is_mistake(error: BaseException) -> bool:
    """Whether the hub has answered that there is none, or was not to be asked; else it did not answer."""
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:  # not in the cache either
        return is_mistake(error.__cause__)
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return 400 <= status < 500 and status not in PASSING_STATUS
    kinds = (OfflineModeIsEnabled, EntryNotFoundError)
    return isinstance(error, kinds) or isinstance(access_error("", error), UsageError)
