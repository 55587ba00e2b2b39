"""What tests of features share: the Admin API, whole stacks, and a store that speaks S3."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from tests import object_store
from tests.admin.conftest import (  # noqa: F401  # fixtures are found by their names here
    admin_database,
    api,
    keeper_database,
    keeper_login,
    migrated,
    pytest_asyncio_loop_factories,
    shared_app,
)
from tests.persistence.migrated import pool  # noqa: F401  # as above

BUCKETS = (f"ledgers-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Its host and port."""
    with object_store.serving() as server:
        yield server


@pytest.fixture
def store(s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a folder in a bucket of its own."""
    for name, value in object_store.KEYS.items():
        monkeypatch.setenv(name, value)
    return object_store.folder(s3, next(BUCKETS), "all")
