"""Databases of these tests: see `tests.persistence.migrated`."""

from tests.persistence.migrated import migrated, shared, template

__all__ = ["migrated", "shared", "template"]
