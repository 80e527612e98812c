"""Fixtures of this room: a stand-in for the Hub, as this process's environment names it."""

from collections.abc import Iterator

import pytest

from tests.services.hub import TOKEN, StandInHub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    """The Hub, with a token that may write to it, and no time spent on waiting."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    with StandInHub() as server:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(_http.time, "sleep", lambda _: None)
        yield server
        _http.close_session()
