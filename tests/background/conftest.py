"""Fixtures of these tests: databases, see `tests.persistence.migrated`, and a keeper over both servers."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.background.backend import Backend, backend_at
from tests.persistence.migrated import cloned, migrated, pool, shared, template

__all__ = ["cloned", "migrated", "pool", "shared", "template"]


@pytest.fixture
async def backend(valkey: str, migrated: str) -> AsyncIterator[Backend]:
    async with backend_at(valkey, migrated) as one:
        yield one
