"""A verified partition with one organization, tenant and key, fresh for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.builders import World


@pytest.fixture
def world(valkey: str) -> Iterator[World]:
    made = World(valkey)
    yield made
    made.client.close()
