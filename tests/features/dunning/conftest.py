"""Fixtures of these tests; databases: see `tests.persistence.migrated`."""

from __future__ import annotations

from tests.persistence.conftest import cloned, migrated, shared, template, writer

__all__ = ["cloned", "migrated", "shared", "template", "writer"]
