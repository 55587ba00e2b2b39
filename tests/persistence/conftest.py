"""Fixtures of these tests; databases: see `tests.persistence.migrated`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from persistence.ledger.writer import LedgerWriter
from tests.persistence.migrated import cloned, migrated, pool, shared, template

__all__ = ["cloned", "migrated", "pool", "shared", "template"]


@pytest.fixture
def writer(migrated: str) -> Iterator[LedgerWriter]:
    writer = LedgerWriter(migrated)
    yield writer
    writer.close()
