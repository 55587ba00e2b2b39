"""Fixtures of these tests: see `tests.persistence.migrated`."""

from tests.persistence.migrated import cloned, migrated, shared, template

__all__ = ["cloned", "migrated", "shared", "template"]
