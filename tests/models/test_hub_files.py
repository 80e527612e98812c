"""What failed downloads from the hub mean: a model that is not there is a mistake, a hub that does not answer is not."""

from types import SimpleNamespace

import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from hybridiff.config import ModelConfig
from hybridiff.errors import StorageError, UsageError
from hybridiff.models.facts import read_facts


class HttpError(Exception):
    """As those of the HTTP client below the hub's."""


def answer(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    return kind("from the hub", response=SimpleNamespace(status_code=status, headers={}, request=None))  # type: ignore[arg-type]


def not_cached(cause: Exception) -> LocalEntryNotFoundError:
    error = LocalEntryNotFoundError("not in the cache either")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (answer(RepositoryNotFoundError, 404), UsageError),
        (answer(GatedRepoError, 403), UsageError),
        (HFValidationError("Repo id must be in the form"), UsageError),
        (not_cached(OfflineModeIsEnabled("offline")), UsageError),
        (LocalEntryNotFoundError("downloads are off"), UsageError),
        (PermissionError(13, "the cache"), UsageError),
        (not_cached(HttpError("no route")), StorageError),
        (not_cached(answer(HfHubHTTPError, 503)), StorageError),
        (answer(HfHubHTTPError, 429), StorageError),
        (HttpError("no proxy"), StorageError),
        (OSError(28, "No space left on device"), StorageError),
    ],
)
def test_a_download_that_fails_is_a_mistake_or_trouble(
    error: Exception, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    for name in ("snapshot_download", "hf_hub_download"):
        monkeypatch.setattr(f"hybridiff.models.hub_files.{name}", fail)
    monkeypatch.setattr("hybridiff.models.lora.is_peft_available", lambda: True)
    for option, model in {
        "model.path": ModelConfig("owner/name"),
        "model.lora": ModelConfig("shapes-xl", lora=["owner/name"]),
    }.items():
        with pytest.raises(kind, match=rf"^{option} is 'owner/name'.*\(.*\)$") as raised:
            read_facts(model)
        assert "\n" not in str(raised.value)


def test_a_name_that_no_hub_could_be_asked_for_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundled model, misspelt, where there is no network."""

    def fail(*_: object, **__: object) -> str:
        raise not_cached(HttpError("no route"))

    monkeypatch.setattr("hybridiff.models.hub_files.snapshot_download", fail)
    with pytest.raises(UsageError, match=r"^model.path is 'shapes-xxl'; allowed: a bundled name"):
        read_facts(ModelConfig("shapes-xxl"))
