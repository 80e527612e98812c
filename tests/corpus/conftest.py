"""Fixtures of the corpus' tests."""

import pytest

from tests.corpus.leases import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()
