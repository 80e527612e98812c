"""Fixtures of the storage's tests."""

import pytest

from tests.storage.leases import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()
